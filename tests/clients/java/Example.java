import balance.client.ApiClient;
import balance.client.ApiException;
import balance.client.ApiResponse;
import balance.client.api.BalanceApi;
import balance.client.model.Change;
import balance.client.model.ChangeRequest;
import balance.client.model.History;
import balance.client.model.HistoryOperation;
import balance.client.model.Problem;
import balance.client.model.ProblemCode;
import java.time.OffsetDateTime;
import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import java.util.UUID;

/** What a program does with the client that openapi-generator makes: java Example http://127.0.0.1:8080 */
public class Example {
    static final long BEYOND_53_BITS = 9007199254740993L;
    static final OffsetDateTime NOON = OffsetDateTime.parse("2026-01-31T12:00:00Z");
    static final String USER = "a/b 😀 " + UUID.randomUUID();

    public static void main(String[] arguments) throws Exception {
        ApiClient client = new ApiClient();
        client.updateBaseUri(arguments[0]);
        BalanceApi balance = new BalanceApi(client);

        // A deposit, and the balance before and after it.
        Change deposit = balance.changeBalance(change(100, NOON), null, null, null);
        equal(deposit.getUserId(), USER);
        equal(deposit.getTimestamp(), NOON);
        equal(balance.getBalance(USER, NOON.minusNanos(1000), null, null).getBalance(), 0L);
        equal(balance.getBalance(USER, null, null, null).getBalance(), 100L);

        // The whole signed 64-bit range is exact.
        equal(balance.changeBalance(change(BEYOND_53_BITS - 100, NOON), null, null, null).getBalance(), BEYOND_53_BITS);

        // A refused change throws; the body is a Problem.
        OffsetDateTime later = NOON.plusSeconds(1);
        try {
            balance.changeBalance(change(-2 * BEYOND_53_BITS, later), null, null, null);
            throw new AssertionError("it was not refused");
        } catch (ApiException refused) {
            Problem problem = client.getObjectMapper().readValue(refused.getResponseBody(), Problem.class);
            equal(refused.getCode(), 403);
            equal(problem.getCode(), ProblemCode.INSUFFICIENT_FUNDS);
            equal(problem.getAt(), later);
            equal(problem.getShortfall(), BEYOND_53_BITS);
        }

        // Sent twice with one key, applied once.
        String key = UUID.randomUUID().toString();
        ApiResponse<Change> first = balance.changeBalanceWithHttpInfo(change(-1, NOON), key, null, null);
        ApiResponse<Change> second = balance.changeBalanceWithHttpInfo(change(-1, NOON), key, null, null);
        equal(second.getData(), first.getData());
        equal(first.getHeaders().get("idempotency-replayed"), null);
        equal(second.getHeaders().get("idempotency-replayed"), List.of("true"));

        // The history, two operations a page.
        List<Long> changes = new ArrayList<>();
        String cursor = null;
        do {
            History page = balance.getHistory(USER, null, null, "asc", 2, null, cursor);
            page.getOperations().stream().map(HistoryOperation::getBalanceChange).forEach(changes::add);
            cursor = page.getNextCursor();
        } while (cursor != null);
        equal(changes, List.of(100L, BEYOND_53_BITS - 100, -1L));

        System.out.println("Java: passed");
    }

    static ChangeRequest change(long amount, OffsetDateTime moment) {
        return new ChangeRequest().userId(USER).context("example").balanceChange(amount).timestamp(moment);
    }

    static void equal(Object found, Object expected) {
        if (!Objects.equals(found, expected)) {
            throw new AssertionError("found " + found + ", expected " + expected);
        }
    }
}
