import java.io.InputStream;
import java.net.URI;
import java.net.URL;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

/**
 * Fetches each URL with both HTTP clients of the JDK, and prints the body that each of them got. The newer one, which says
 * the version too, offers the server an upgrade to HTTP/2, as it does by default.
 */
final class Client {
    public static void main(String[] urls) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (String url : urls) {
            HttpRequest request = HttpRequest.newBuilder(URI.create(url)).build();
            HttpResponse<String> response = client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.print(response.version() + " " + response.body());
            try (InputStream body = new URL(url).openStream()) {
                System.out.print(new String(body.readAllBytes()));
            }
        }
    }
}
