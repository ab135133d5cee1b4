-- Loads timelines as the service would have written them. An operation adds 100, every fourth takes 50, so that all
-- balances are known without a window over millions of rows; stamps are a step apart, give or take less than a step.

CREATE FUNCTION pg_temp.balance_after(operation bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS
    'SELECT operation / 4 * 250 + operation % 4 * 100';

CREATE FUNCTION pg_temp.load(prefix text, users bigint, operations bigint, step bigint, until timestamptz)
RETURNS void LANGUAGE sql AS $$
    INSERT INTO changes_history (user_id, "timestamp", seq, balance_change, balance_after, context, operation_id,
        approved, instance, recorded_at)
    SELECT CASE users WHEN 1 THEN prefix ELSE prefix || u END,
        until - ((operations - o) * step + (u * 7919 + o * 104729) % step) * interval '1 microsecond',
        o, CASE o % 4 WHEN 0 THEN -50 ELSE 100 END, pg_temp.balance_after(o), 'benchmark', gen_random_uuid(),
        false, 'loaded', now()
    FROM generate_series(0, users - 1) u CROSS JOIN generate_series(1, operations) o;

    -- One every SEGMENT_LENGTH operations; the newest one to two lengths stay open.
    INSERT INTO balance_checkpoints (user_id, "timestamp", balance, lowest, highest)
    SELECT user_id, max("timestamp"), pg_temp.balance_after(max(seq)), min(balance_after), max(balance_after)
    FROM changes_history
    WHERE seq <= greatest(operations / SEGMENT_LENGTH - 1, 0) * SEGMENT_LENGTH
        AND CASE users WHEN 1 THEN user_id = prefix ELSE user_id >= prefix AND user_id < chr(ascii(prefix) + 1) END
    GROUP BY user_id, (seq - 1) / SEGMENT_LENGTH;

    INSERT INTO balance (user_id, balance, version, latest, since_checkpoint, recorded_at)
    SELECT user_id, balance_after, seq, "timestamp",
        operations - greatest(operations / SEGMENT_LENGTH - 1, 0) * SEGMENT_LENGTH, now()
    FROM changes_history
    WHERE seq = operations
        AND CASE users WHEN 1 THEN user_id = prefix ELSE user_id >= prefix AND user_id < chr(ascii(prefix) + 1) END;
$$;
