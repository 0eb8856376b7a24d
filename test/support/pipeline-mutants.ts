/*
 * Bugs that someone could write, each as a change of the source text. The simulation must find every one of them; one
 * that it doesn't find is a promise of the pipeline that nothing holds it to.
 */

export interface Edit {
  /** From the root of the repository. */
  readonly file: string;
  /** Stands there exactly once. */
  readonly from: string;
  readonly to: string;
}

export interface Mutant {
  readonly name: string;
  readonly edits: readonly Edit[];
}

const PROCESS = "src/pipeline/process-chunk.ts";
const SEAL = "src/pipeline/seal-session.ts";
const INTEGRATE = "src/pipeline/integrate.ts";
const SWEEP = "src/pipeline/sweep.ts";
const RELAY = "src/pipeline/relay-events.ts";
const FINALIZE = "src/pipeline/finalize-session.ts";
const MARKS = "src/pipeline/sent-marks.ts";
const ROOM = "src/pipeline/session-room.ts";
const GROWTH = "src/pipeline/own-growth.ts";

const COMMIT = "  const outcome = await commit(pipeline, chunk, blobAtMs, signal);\n";
const REFUSE = `  if (outcome !== "inserted") {
    release(sealed.blob);
    return finishLostRace(pipeline, job, chunk, outcome, signal);
  }
`;
const REMOVE_PAYLOAD =
  '    await pipeline.patience("payloads.remove", signal, () => pipeline.payloads.remove(job.sessionId, ref));\n';

export const PIPELINE_MUTANTS: readonly Mutant[] = [
  {
    name: "the tree head is replaced without compare-and-swap",
    edits: [
      {
        file: "test/support/memory/session-store.ts",
        from: " || stored.version !== version",
        to: "",
      },
      {
        file: "test/support/memory/session-store.ts",
        from: "version: version + 1 }",
        to: "version: stored.version + 1 }",
      },
    ],
  },
  {
    name: "the chunk document is upserted instead of inserted",
    edits: [
      {
        file: "test/support/memory/chunk-store.ts",
        from: '    if (this.#chunks.has(indexKey(chunk))) return "index-taken";\n',
        to: "",
      },
    ],
  },
  {
    name: "tiles are written without a width guard",
    edits: [
      { file: "test/support/memory/tile-store.ts", from: "if (tile.width > storedWidth)", to: "if (true)" },
    ],
  },
  {
    name: "the document is written before the blob",
    edits: [
      { file: PROCESS, from: COMMIT, to: "" },
      {
        file: PROCESS,
        from: "  const blobAtMs = pipeline.clock.monotonicMs();\n",
        to: `  const blobAtMs = pipeline.clock.monotonicMs();\n${COMMIT}`,
      },
    ],
  },
  {
    name: "the blob is named by its index only",
    edits: [{ file: PROCESS, from: "${job.index}:${attempt}`", to: "${job.index}:only`" }],
  },
  {
    name: "integrate gives up after a lost compare-and-swap",
    edits: [
      {
        file: INTEGRATE,
        from: '"tree-conflict", sessionId: session });\n      record = undefined;\n      continue;\n',
        to: '"tree-conflict", sessionId: session });\n      return { record: await readSession(stores, session, signal), isUnread: false };\n',
      },
    ],
  },
  {
    name: "integrate takes its own old head for the session as it is",
    edits: [{ file: INTEGRATE, from: "if (!isUnproven) return {", to: "return {" }],
  },
  {
    name: "integrate goes beyond the proposed count",
    edits: [
      {
        file: INTEGRATE,
        from: "record.expectedCount ?? Number.MAX_SAFE_INTEGER",
        to: "Number.MAX_SAFE_INTEGER",
      },
    ],
  },
  {
    name: "a request during a run is content with that run",
    edits: [
      {
        file: INTEGRATE,
        from: "    turn.next ??= turn.current.then(",
        to: "    if (turn.next === undefined) return turn.current;\n    turn.next ??= turn.current.then(",
      },
    ],
  },
  {
    name: "the event is published before the commit",
    edits: [
      { file: PROCESS, from: COMMIT, to: `  await relayChunkCompleted(pipeline, chunk, signal);\n${COMMIT}` },
    ],
  },
  {
    name: "the event is published before the session's end is looked at",
    edits: [
      {
        file: PROCESS,
        from: "  // 5. Integrate, and seal if that was the last leaf.\n",
        to: "  await relayChunkCompleted(pipeline, chunk, signal);\n",
      },
    ],
  },
  {
    name: "the sweeper publishes before it looks at the session's end",
    edits: [
      {
        file: SWEEP,
        from: "isBeyondEnd(session, chunk.index)\n          ? withdrawChunk(this.#ports, chunk, signal)",
        to: "isBeyondEnd(session, chunk.index)\n          ? this.#republishChunk(chunk, signal).then(() => withdrawChunk(this.#ports, chunk, signal))",
      },
    ],
  },
  {
    name: "a chunk beyond the end is kept",
    edits: [
      {
        file: PROCESS,
        from: "  if (isBeyondEnd(session, chunk.index)) return withdraw(pipeline, chunk, session, signal);\n",
        to: "",
      },
    ],
  },
  {
    name: "an unconfirmed count already shuts chunks out",
    edits: [{ file: SEAL, from: "return session.countConfirmed && session", to: "return session" }],
  },
  {
    name: "a chunk is withdrawn under an unconfirmed count",
    edits: [
      {
        file: PROCESS,
        from: "  // 5. Integrate, and seal if that was the last leaf.\n",
        to: [
          "  const early = await pipeline.sessions.find(chunk.sessionId);",
          "  if (chunk.index >= (early?.expectedCount ?? Number.MAX_SAFE_INTEGER)) {",
          "    await withdrawChunk(pipeline, chunk, signal);",
          "    throw beyondEnd();",
          "  }",
          "",
        ].join("\n"),
      },
    ],
  },
  {
    name: "a count is confirmed without a look at what lies beyond it",
    edits: [{ file: SEAL, from: "return beyond.length === 0 ?", to: "return beyond.length >= 0 ?" }],
  },
  {
    name: "a session is sealed under a count that nobody confirmed",
    edits: [
      {
        file: SEAL,
        from: "  if (!record.countConfirmed) return settleCount(ports, record, record.expectedCount, signal);\n",
        to: "  void settleCount;\n",
      },
    ],
  },
  {
    name: "a rival proposal counts as final before it is settled",
    edits: [
      {
        file: FINALIZE,
        from: "    if (record.countConfirmed) throw",
        to: "    if (record.expectedCount !== undefined) throw",
      },
    ],
  },
  {
    name: "blobs without a document are swept at once",
    edits: [{ file: SWEEP, from: ">= limits.orphanBlobMs", to: ">= 0" }],
  },
  {
    name: "blobs without a document are never swept",
    edits: [{ file: SWEEP, from: ">= limits.orphanBlobMs", to: "< 0" }],
  },
  {
    name: "an attempt commits however old it is",
    edits: [{ file: PROCESS, from: "> limits.attemptAgeMaxMs", to: "> limits.attemptAgeMaxMs * 1e9" }],
  },
  {
    name: "the event is marked sent before it is published",
    edits: [
      {
        file: RELAY,
        from: '  await patience("events.publish", signal, () => events.publish(chunkCompletedEvent(chunk)));\n',
        to: '  await ports.chunks.markSent([chunk], new Date());\n  await patience("events.publish", signal, () => events.publish(chunkCompletedEvent(chunk)));\n',
      },
    ],
  },
  {
    name: "pending events are never swept",
    edits: [{ file: SWEEP, from: "return ageMs >= limits.eventPendingMs;", to: "return false;" }],
  },
  {
    name: "sessions are never swept",
    edits: [
      {
        file: SWEEP,
        from: "await this.#unlessStuck(listed.sessionId, signal, () => this.#advance(listed.read(), signal));",
        to: "void this.#advance;",
      },
    ],
  },
  {
    name: "gaps are never reported",
    edits: [{ file: SWEEP, from: "< limits.gapAlertMs) return;", to: ">= 0) return;" }],
  },
  {
    name: "a lost reply to the own insert is taken for a rival's chunk",
    edits: [
      {
        file: PROCESS,
        from: "  if (winner?.blobId === own.blobId) return finishCommitted(pipeline, job, winner, signal);\n",
        to: "",
      },
    ],
  },
  {
    name: "a refused attempt removes its blob although the index is free",
    edits: [
      {
        file: PROCESS,
        from: "  if (winner !== undefined) {\n    await pipeline.patience",
        to: "  {\n    await pipeline.patience",
      },
      {
        file: PROCESS,
        from: "    return finishRepeat(pipeline, job, winner, signal);\n  }\n",
        to: "    if (winner !== undefined) return finishRepeat(pipeline, job, winner, signal);\n  }\n",
      },
    ],
  },
  {
    name: "withdrawing removes the blob first",
    edits: [
      {
        file: PROCESS,
        from: '  await patience("chunks.withdraw"',
        to: '  await patience("blobs.remove", signal, () => blobs.remove([chunk.blobId]));\n  await patience("chunks.withdraw"',
      },
    ],
  },
  {
    name: "any chunk at the index counts as the same input",
    edits: [
      {
        file: PROCESS,
        from: "  return bytesEqual(plainMac(key, digest), committed.plainMac);",
        to: "  return plainMac(key, digest).byteLength > 0;",
      },
    ],
  },
  {
    name: "the payload is removed before the commit",
    edits: [
      {
        file: PROCESS,
        from: COMMIT + REFUSE,
        to: `  if (job.source.kind === "reference") {\n    const { ref } = job.source;\n${REMOVE_PAYLOAD}  }\n${COMMIT}${REFUSE}`,
      },
    ],
  },
  {
    name: "the payload of a repeat is not looked for among the committed",
    edits: [
      {
        file: PROCESS,
        from: "  if (payload === undefined) return finishAfterLostPayload(pipeline, job, signal);",
        to: '  if (payload === undefined) throw new LucidError("JOB_INVALID", "no payload") ?? finishAfterLostPayload;',
      },
    ],
  },
  {
    name: "a session that is sealed meanwhile refuses a chunk that it holds",
    edits: [
      {
        file: PROCESS,
        from: "  if (committed === undefined) throw error;\n",
        to: "  throw error;\n",
      },
    ],
  },
  {
    name: "an event is marked whatever became of Redis meanwhile",
    edits: [{ file: MARKS, from: "marker !== undefined && marker === this.#marker", to: "marker !== null" }],
  },
  {
    name: "an emptied Redis reopens no events",
    edits: [
      {
        file: SWEEP,
        from: '        reopened += await patience("chunks.reopen", signal, () => chunks.reopenEvents(id, since));\n',
        to: "",
      },
    ],
  },
  {
    name: "an emptied Redis reopens no seals",
    edits: [
      {
        file: SWEEP,
        from: '        reopened += await patience("sessions.reopen", signal, () => sessions.reopenEvents(id));\n',
        to: "",
      },
    ],
  },
  {
    name: "MAX_SESSION_SIZE doesn't count chunks that are not in the tree",
    edits: [
      {
        file: ROOM,
        from: "return record.totals.originalBytes + beyond;",
        to: "return record.totals.originalBytes + 0 * beyond;",
      },
    ],
  },
  {
    name: "MAX_SESSION_SIZE is vouched for by the index although chunks far ahead are committed",
    edits: [{ file: ROOM, from: "if (!roomCounted && reach <=", to: "if (reach <=" }],
  },
  {
    name: "MAX_SESSION_SIZE counts leaves of the tree twice",
    edits: [
      {
        file: ROOM,
        from: "chunks.originalBytesFrom(session, record.tree.size)",
        to: "chunks.originalBytesFrom(session, 0)",
      },
    ],
  },
  {
    name: "a tree that grew unread isn't looked at again",
    edits: [{ file: GROWTH, from: "    if (!this.#stopped.aborted) await advance(session);\n", to: "" }],
  },
  {
    name: "a tree that grew unread is looked at once in the life of a process",
    edits: [{ file: GROWTH, from: "    this.#awaited.delete(session);\n", to: "" }],
  },
  {
    name: "a chunk whose insert's reply was lost is announced and not integrated",
    edits: [
      {
        file: PROCESS,
        from: "if (winner?.blobId === own.blobId) return finishCommitted(pipeline, job, winner, signal);",
        to: `if (winner?.blobId === own.blobId) {
    const known = await pipeline.sessions.find(job.sessionId);
    if (known?.expectedCount === undefined) {
      await relayChunkCompleted(pipeline, winner, signal);
      return winner;
    }
    return finishCommitted(pipeline, job, winner, signal);
  }`,
      },
    ],
  },
  {
    name: "a leaf counts as committed before it is",
    edits: [
      { file: PROCESS, from: COMMIT, to: `  pipeline.growth.committed(chunk.sessionId, chunk);\n${COMMIT}` },
    ],
  },
];
