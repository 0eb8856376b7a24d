# syntax=docker/dockerfile:1
# linux/arm64 and linux/amd64:  docker buildx build --platform linux/arm64,linux/amd64 -t session-processor .
#
# There is no build step for our own code: Node runs the TypeScript source (docs/decisions/0001-run-from-source.md).

# Both stages take the same tag, so that native code is compiled against the C library that it will run with.
ARG NODE_TAG=26

# The full image has python3, make and g++, which zstd-napi needs where its prebuilt binary can't be downloaded.
FROM node:${NODE_TAG} AS dependencies
WORKDIR /app
COPY package.json package-lock.json .npmrc ./
RUN npm ci --omit=dev

FROM node:${NODE_TAG}-slim
ENV NODE_ENV=production \
    LUCID_PAYLOAD_PATH=/data/payloads \
    LUCID_MANIFEST_PATH=/data/manifests \
    LUCID_COMPRESSION_PATH=/data/scratch
# Not below a node_modules folder: Node strips no types there.
WORKDIR /app
# Made before any volume is mounted on it, so that a new named volume belongs to the user that writes to it.
RUN install -d -o node -g node -m 0700 /data /data/payloads /data/manifests /data/scratch
COPY --from=dependencies /app/node_modules ./node_modules
COPY package.json ./
COPY bin ./bin
COPY src ./src
COPY workers ./workers

# Owned by root and only read: the root file system can be mounted read-only; /data is all that is written to.
USER node
EXPOSE 8091

# 127.0.0.1 answers unless HTTP_BIND names another address; the first minute is for waiting for MongoDB.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["node", "-e", "fetch('http://127.0.0.1:' + (process.env.SESSION_PROCESSOR_PORT || 8091) + '/health').then((answer) => process.exit(answer.ok ? 0 : 1), () => process.exit(1))"]

# No tini: the worker handles SIGTERM and SIGINT itself, and starts no processes whose remains somebody must collect.
STOPSIGNAL SIGTERM
# A small young generation: less memory, and no slower (docs/decisions/0012-small-young-generation.md).
ENTRYPOINT ["node", "--max-semi-space-size=8", "src/cli/session-processor.ts"]
CMD ["run"]
