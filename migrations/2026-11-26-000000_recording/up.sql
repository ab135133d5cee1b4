-- What was known when: moments of recording that go up with each commit of a user, and bounds of them with the checkpoints.

-- Of what was stored until now each operation has a moment of its own, and they go up as those of commits do.
ALTER TABLE balance
    ADD COLUMN recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(); -- of the last accepted operations
UPDATE balance b SET recorded_at = h.recorded_at
FROM (SELECT user_id, max(recorded_at) AS recorded_at FROM changes_history GROUP BY user_id) h
WHERE h.user_id = b.user_id;

-- Bounds of recorded_at: right, but not always the closest. What is there already gets the widest.
ALTER TABLE balance_checkpoints
    ADD COLUMN recorded_from      timestamptz NOT NULL DEFAULT '-infinity',       -- none of the segment's operations was earlier
    ADD COLUMN recorded_until     timestamptz NOT NULL DEFAULT clock_timestamp(), -- none of the segment's was later
    ADD COLUMN all_recorded_until timestamptz NOT NULL DEFAULT clock_timestamp(), -- none until the checkpoint was later
    ADD CONSTRAINT balance_checkpoints_recorded CHECK
        (recorded_from <= recorded_until AND recorded_until <= all_recorded_until);
