import { singleKeyRing } from "../../src/core/encrypt/kek.ts";
import type { KernelThreads } from "../../src/pipeline/ports.ts";
import { SessionKeys } from "../../src/pipeline/session-keys.ts";
import type { SessionRecord } from "../../src/schema/record.ts";
import { fastKey } from "./pipeline-world.ts";
import { seededRandom } from "./seeded-random.ts";

/* Prints how many chunks the keys of one process seal under their first salt. */

const GIVE_UP_AFTER = 2 ** 21;

const random = seededRandom(1);
const keys = new SessionKeys({
  keyRing: singleKeyRing("d5Yt0pMZ3kQm8sVx2bHc7nRw4jLf9gTa"),
  threads: { deriveKey: async (password, salt) => fastKey(password, salt) } as KernelThreads,
  clock: { now: () => new Date(0), monotonicMs: () => 0, sleep: async () => undefined },
  random: (length) => random.bytes(length),
  observer: { report: () => undefined },
  epochAgeMaxMs: 1,
});
const id = "sess-1" as SessionRecord["id"];
const session = { id, keys: [keys.newSecret(id)] } as unknown as SessionRecord;
const { salt: first } = await keys.forSealing(session, 1);
let chunks = 1;
while (chunks < GIVE_UP_AFTER && (await keys.forSealing(session, 1)).salt === first) chunks += 1;
process.stdout.write(`${chunks}\n`);
