import de.bwaldvogel.mongo.MongoBackend;
import de.bwaldvogel.mongo.MongoServer;
import de.bwaldvogel.mongo.MongoVersion;
import de.bwaldvogel.mongo.backend.h2.H2Backend;
import de.bwaldvogel.mongo.backend.memory.MemoryBackend;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.util.List;

/**
 * Runs mongo-java-server for trying and testing: java -cp 'lib/*' Launcher.java --port N [--file PATH].
 *
 * Listens on 127.0.0.1 only. Port 0 takes a free one; the line "listening PORT" on standard output says which, and
 * that connections are accepted. With --file the data is kept in that H2 file, without it in memory. Ends in order
 * when standard input reaches its end, so it can't outlive whoever holds the other end of that pipe.
 */
public final class Launcher {
  /** The library's own newest version reports wire version 8; the driver refuses servers below 9 (MongoDB 4.4). */
  private static final class Version44 implements MongoVersion {
    @Override
    public List<Integer> getVersionArray() {
      return List.of(4, 4, 0, 0);
    }

    @Override
    public int getWireVersion() {
      return 9;
    }
  }

  public static void main(String[] args) throws IOException {
    int port = 0;
    String file = null;
    for (int at = 0; at < args.length; at += 2) {
      if (at + 1 == args.length) throw new IllegalArgumentException("no value after " + args[at]);
      switch (args[at]) {
        case "--port" -> port = Integer.parseInt(args[at + 1]);
        case "--file" -> file = args[at + 1];
        default -> throw new IllegalArgumentException("unknown option " + args[at]);
      }
    }
    MongoBackend backend = file == null ? new MemoryBackend() : new H2Backend(file);
    MongoServer server = new MongoServer(backend.version(new Version44()));
    Runtime.getRuntime().addShutdownHook(new Thread(server::shutdownNow));
    server.bind(new InetSocketAddress("127.0.0.1", port));
    System.out.println("listening " + server.getLocalAddress().getPort());
    while (System.in.read() >= 0) {
      // What arrives is ignored; only the end counts.
    }
    System.exit(0);
  }
}
