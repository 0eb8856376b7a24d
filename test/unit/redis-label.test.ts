import { expect, test } from "vitest";
import { labelOf } from "../../src/adapters/redis/label.ts";

test.each([
  ["# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\n", "Redis 7.0.15"],
  ["# Server\r\nredis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.1.1\r\n", "valkey 8.1.1"],
  ["# Server\r\nredis_version:7.4.0\r\nserver_name:other\r\n", "other 7.4.0"],
  ["", "Redis, of unknown version"],
])("%j is named %s", (info, label) => {
  expect(labelOf(info)).toBe(label);
});
