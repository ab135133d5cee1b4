\set number random(0, :users - 1)
SELECT version FROM balance WHERE user_id = 'u' || :number \gset
WITH moved AS (
    UPDATE balance SET balance = balance + 1, version = version + 1, latest = greatest(latest, clock_timestamp()),
        since_checkpoint = since_checkpoint + 1
    WHERE user_id = 'u' || :number AND version = :version AND balance + 1 >= 0
    RETURNING user_id, balance, version, latest)
INSERT INTO changes_history (user_id, "timestamp", seq, balance_change, balance_after, context, operation_id, approved, instance)
SELECT user_id, latest, version, 1, balance, 'benchmark', gen_random_uuid(), false, 'pgbench' FROM moved;
