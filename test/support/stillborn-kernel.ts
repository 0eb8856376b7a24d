// A CPU thread that never gets ready.
throw new Error("stillborn");
