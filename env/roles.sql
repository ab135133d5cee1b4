-- The database's roles, so that a replica that has been taken over can neither rewrite the history nor change the schema.
--
--   role             | for               | rights
--   balance_owner    | `balance migrate` | owns the tables
--   balance_service  | `balance serve`   | reads, enters operations, moves balances; rewrites and removes no operation
--   balance_auditor  | `balance verify`  | reads
--
-- Run it in the ledger's own database, before `balance migrate` or after it, and again whenever you like; it is done wholly
-- or not at all:
--
--   psql --set=ON_ERROR_STOP=1 --file=env/roles.sql "postgres://admin@host/balance"
--
-- by a superuser, or by the database's owner with CREATEROLE. It sets no passwords: env/role_passwords.sql does, or
-- `\password balance_service` in psql. It says the rights of tables that are there; the migration that makes a table says
-- them too, for roles that were there before it. A test holds both to the same.

BEGIN;
SET LOCAL client_min_messages = warning;

DO $$
DECLARE
    name text;
    too_much text;
BEGIN
    FOREACH name IN ARRAY ARRAY['balance_owner', 'balance_service', 'balance_auditor'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I LOGIN NOCREATEDB NOCREATEROLE NOINHERIT', name);
        END IF;
    END LOOP;
    -- A role that was there may have been given more. To take that away could break something else: say so and stop.
    SELECT string_agg(format('%s (superuser, CREATEDB, CREATEROLE, REPLICATION, BYPASSRLS or a member of another role)', rolname), ', ')
    INTO too_much FROM pg_roles r
    WHERE rolname IN ('balance_owner', 'balance_service', 'balance_auditor')
        AND (rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls
            OR EXISTS (SELECT FROM pg_auth_members m WHERE m.member = r.oid));
    IF too_much IS NOT NULL THEN
        RAISE EXCEPTION 'more rights than these roles are meant to have: %', too_much
            USING HINT = 'Take them away with ALTER ROLE or REVOKE and run this file again.';
    END IF;
    -- Who is no superuser must be a member of a role to give it tables or to set its default privileges.
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
        AND NOT pg_has_role(current_user, 'balance_owner', 'MEMBER') THEN
        EXECUTE 'GRANT balance_owner TO CURRENT_USER';
    END IF;
    -- Everybody may make temporary tables in a database unless it is said otherwise.
    EXECUTE format('REVOKE CREATE, TEMPORARY ON DATABASE %I FROM PUBLIC, balance_owner, balance_service, balance_auditor',
        current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO balance_owner, balance_service, balance_auditor', current_database());
END
$$;

-- Databases that were made before PostgreSQL 15 let everybody make tables in this schema.
REVOKE CREATE ON SCHEMA public FROM PUBLIC, balance_service, balance_auditor;
GRANT USAGE ON SCHEMA public TO balance_owner, balance_service, balance_auditor;
GRANT CREATE ON SCHEMA public TO balance_owner;

-- What later migrations make can be read. Whether it can be written is for them to say.
ALTER DEFAULT PRIVILEGES FOR ROLE balance_owner IN SCHEMA public GRANT SELECT ON TABLES TO balance_service, balance_auditor;

DO $$
DECLARE
    ledger_table record;
BEGIN
    FOR ledger_table IN
        SELECT name, writing, tableowner <> 'balance_owner' AS is_anothers FROM (VALUES
            ('balance', 'INSERT, UPDATE'),
            ('balance_checkpoints', 'INSERT, UPDATE'),
            ('changes_history', 'INSERT'),
            ('__diesel_schema_migrations', NULL)) AS t (name, writing)
        JOIN pg_tables ON schemaname = 'public' AND tablename = name
    LOOP
        -- It waits for all who use the table, and they for it, so it is not done without need.
        IF ledger_table.is_anothers THEN
            EXECUTE format('ALTER TABLE public.%I OWNER TO balance_owner', ledger_table.name);
        END IF;
        EXECUTE format('REVOKE ALL ON public.%I FROM PUBLIC, balance_service, balance_auditor', ledger_table.name);
        EXECUTE format('GRANT SELECT ON public.%I TO balance_service, balance_auditor', ledger_table.name);
        IF ledger_table.writing IS NOT NULL THEN
            EXECUTE format('GRANT %s ON public.%I TO balance_service', ledger_table.writing, ledger_table.name);
        END IF;
    END LOOP;
END
$$;

COMMIT;
