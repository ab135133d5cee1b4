\set number random(0, :users - 1)
SELECT version FROM balance WHERE user_id = 'u' || :number \gset
WITH moved AS (
    UPDATE balance SET balance = balance + 1, version = version + 1, latest = greatest(latest, clock_timestamp()),
        since_checkpoint = since_checkpoint + 1, recorded_at = greatest(clock_timestamp(), recorded_at + interval '1 microsecond')
    WHERE user_id = 'u' || :number AND version = :version AND balance + 1 >= 0
    RETURNING user_id, balance, version, latest, recorded_at)
INSERT INTO changes_history (user_id, "timestamp", seq, balance_change, balance_after, context, operation_id, approved, instance, recorded_at)
SELECT user_id, latest, version, 1, balance, 'benchmark', gen_random_uuid(), false, 'pgbench', recorded_at FROM moved;
