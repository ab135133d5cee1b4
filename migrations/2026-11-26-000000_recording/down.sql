ALTER TABLE balance_checkpoints
    DROP COLUMN recorded_from,
    DROP COLUMN recorded_until,
    DROP COLUMN all_recorded_until;
ALTER TABLE balance DROP COLUMN recorded_at;
