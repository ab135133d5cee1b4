"""What a program does with the client that openapi-python-client makes: python example.py http://127.0.0.1:8080"""

import sys
import uuid
from datetime import datetime, timedelta, timezone

from balance_client import Client
from balance_client.api.balance import change_balance, get_balance, get_history
from balance_client.models import Balance, Change, ChangeRequest, History, Problem, ProblemCode
from balance_client.models.get_history_order import GetHistoryOrder

BEYOND_53_BITS = 9007199254740993
NOON = datetime(2026, 1, 31, 12, tzinfo=timezone.utc)

client = Client(base_url=sys.argv[1], raise_on_unexpected_status=True)
user = f"a/b 😀 {uuid.uuid4()}"


def change(amount: int, moment: datetime = NOON) -> ChangeRequest:
    return ChangeRequest(user_id=user, context="example", balance_change=amount, timestamp=moment)


# A deposit, and the balance before and after it.
deposit = change_balance.sync(client=client, body=change(100))
assert isinstance(deposit, Change), deposit
assert (deposit.user_id, deposit.balance, deposit.timestamp) == (user, 100, NOON)
before = get_balance.sync(user, client=client, timestamp=NOON - timedelta(microseconds=1))
assert isinstance(before, Balance) and before.balance == 0, before
after = get_balance.sync(user, client=client)
assert isinstance(after, Balance) and after.balance == 100, after

# Whole numbers are exact, however large.
large = change_balance.sync(client=client, body=change(BEYOND_53_BITS - 100))
assert isinstance(large, Change) and large.balance == BEYOND_53_BITS, large

# A refused change is answered with a Problem.
refused = change_balance.sync(client=client, body=change(-2 * BEYOND_53_BITS, NOON + timedelta(seconds=1)))
assert isinstance(refused, Problem), refused
assert refused.code is ProblemCode.INSUFFICIENT_FUNDS
assert (refused.status, refused.at, refused.shortfall) == (403, NOON + timedelta(seconds=1), BEYOND_53_BITS)

# Sent twice with one key, applied once.
key = str(uuid.uuid4())
answers = [change_balance.sync_detailed(client=client, body=change(-1), idempotency_key=key) for _ in range(2)]
assert answers[0].parsed == answers[1].parsed
assert [answer.headers.get("Idempotency-Replayed") for answer in answers] == [None, "true"]

# The history, two operations a page.
changes, cursor = [], None
while True:
    beyond = {} if cursor is None else {"cursor": cursor}
    page = get_history.sync(user, client=client, order=GetHistoryOrder.ASC, limit=2, **beyond)
    assert isinstance(page, History), page
    changes += [operation.balance_change for operation in page.operations]
    if not page.next_cursor:
        break
    cursor = page.next_cursor
assert changes == [100, BEYOND_53_BITS - 100, -1], changes

print("Python: passed")
