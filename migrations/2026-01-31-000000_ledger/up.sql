-- Every key begins with user_id and nothing refers across users: the tables can be distributed by user.
-- The constraints are the second line of defence; the first is the service, which never trips them.

-- One row a user who has had an operation. The conditional update of this row, keyed on version, is the only
-- synchronisation between replicas.
CREATE TABLE balance (
    user_id          text COLLATE "C" NOT NULL,
    balance          bigint           NOT NULL, -- after the last operation of the timeline
    version          bigint           NOT NULL, -- how many operations were accepted
    latest           timestamptz      NOT NULL, -- timestamp of the last operation of the timeline
    since_checkpoint integer          NOT NULL, -- operations after the last checkpoint
    CONSTRAINT balance_pkey PRIMARY KEY (user_id),
    CONSTRAINT balance_user_id CHECK (char_length(user_id) BETWEEN 1 AND 256),
    CONSTRAINT balance_not_negative CHECK (balance >= 0),
    CONSTRAINT balance_version CHECK (version >= 1),
    CONSTRAINT balance_since_checkpoint CHECK (since_checkpoint BETWEEN 0 AND version)
) WITH (fillfactor = 80); -- a new version of a row finds room beside the old one, and no index is touched

-- Every accepted operation, for ever: rows are only inserted.
CREATE TABLE changes_history (
    user_id         text COLLATE "C" NOT NULL,
    "timestamp"     timestamptz      NOT NULL,
    seq             bigint           NOT NULL, -- the user's version with this operation: the order of acceptance
    balance_change  bigint           NOT NULL,
    balance_after   bigint           NOT NULL, -- at this timestamp when it was accepted: what a replay answers
    context         text             NOT NULL,
    operation_id    uuid             NOT NULL,
    idempotency_key text COLLATE "C",
    approved        boolean          NOT NULL, -- whether the Approver was asked, and approved
    instance        text             NOT NULL, -- the replica that stored it
    caller          text,                      -- whose token it was asked for with, where there are tokens
    recorded_at     timestamptz      NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT changes_history_pkey PRIMARY KEY (user_id, "timestamp", seq) INCLUDE (balance_change),
    CONSTRAINT changes_history_user_id CHECK (char_length(user_id) BETWEEN 1 AND 256),
    CONSTRAINT changes_history_timestamp CHECK
        ("timestamp" >= '0001-01-01 00:00:00+00' AND "timestamp" < '10000-01-01 00:00:00+00'),
    CONSTRAINT changes_history_seq CHECK (seq >= 1),
    CONSTRAINT changes_history_not_negative CHECK (balance_after >= 0),
    CONSTRAINT changes_history_context CHECK (char_length(context) <= 4096),
    CONSTRAINT changes_history_idempotency_key CHECK (char_length(idempotency_key) BETWEEN 1 AND 255),
    CONSTRAINT changes_history_caller CHECK (char_length(caller) BETWEEN 1 AND 128)
);

-- At most one operation a user and key.
CREATE UNIQUE INDEX changes_history_by_idempotency_key ON changes_history (user_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;

-- What was stored of late, for a replica that starts again and looks for changes without their lines in the operations log.
-- No key: a few bytes for each range of blocks, since rows are stored nearly in the order of this column. PostgreSQL takes
-- down 256 ranges to be summarised between two visits of autovacuum, a minute apart: with 128 blocks of 8 kB a range, that is
-- 256 MiB of rows a minute. What is more than that is summarised by the next VACUUM, and until then read by every look.
CREATE INDEX changes_history_by_recorded_at ON changes_history USING brin (recorded_at)
    WITH (autosummarize = on, pages_per_range = 128);

-- A checkpoint closes a segment of a timeline: all that comes after the checkpoint before it, up to and including its own
-- timestamp. It is derived from changes_history and moves when an earlier operation arrives.
CREATE TABLE balance_checkpoints (
    user_id     text COLLATE "C" NOT NULL,
    "timestamp" timestamptz      NOT NULL,
    balance     bigint           NOT NULL, -- at this timestamp
    lowest      bigint           NOT NULL, -- of the balances at the segment's timestamps
    highest     bigint           NOT NULL,
    CONSTRAINT balance_checkpoints_pkey PRIMARY KEY (user_id, "timestamp"),
    CONSTRAINT balance_checkpoints_not_negative CHECK (lowest >= 0),
    CONSTRAINT balance_checkpoints_extremes CHECK (balance BETWEEN lowest AND highest)
) WITH (fillfactor = 50); -- a shift writes all later rows anew: beside the old ones, and without touching the index

-- What env/roles.sql gives to the same roles when it is run after this. Without those roles there is nothing to give.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'balance_service') THEN
        GRANT SELECT, INSERT, UPDATE ON balance, balance_checkpoints TO balance_service;
        GRANT SELECT, INSERT ON changes_history TO balance_service;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'balance_auditor') THEN
        GRANT SELECT ON balance, balance_checkpoints, changes_history TO balance_auditor;
    END IF;
END
$$;
