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
-- on PostgreSQL 15 to 18, by a superuser, or by the database's owner with CREATEROLE, as the administrator of a managed
-- PostgreSQL is. Since PostgreSQL 16 that owner needs the ADMIN option on those of the roles that somebody else made.
--
-- What anybody else was given here it takes away; where one of these roles has more than rights, such as the database itself,
-- it changes nothing and says what to type. It sets no passwords: env/role_passwords.sql does, or `\password balance_service`
-- in psql. It says the rights of tables that are there; the migration that makes a table says them too, for roles that were
-- there before it. A test holds both to the same.

BEGIN;
SET LOCAL client_min_messages = warning;

DO $$
DECLARE
    of_the_ledger CONSTANT text[] := ARRAY['balance_owner', 'balance_service', 'balance_auditor'];
    this_database CONSTANT pg_database := d FROM pg_database d WHERE datname = current_database();
    is_superuser CONSTANT boolean := rolsuper FROM pg_roles WHERE rolname = current_user;
    -- Since PostgreSQL 16 CREATEROLE is not enough to change a role: the ADMIN option on it is needed. The creator of a role
    -- has ADMIN, but neither INHERIT (the role's rights) nor SET (giving it tables) until it grants them to itself.
    has_membership_options CONSTANT boolean := current_setting('server_version_num')::integer >= 160000;
    name text;
    setting text;
    foreign_roles text;
    too_much text;
    mend text;
BEGIN
    -- A role that was there may have been given more. To take that away could break something else: say so and stop. An owner
    -- may do anything with what it owns, and the database's owner is a member of pg_database_owner, which owns the schema.
    SELECT string_agg(what, '; ' ORDER BY turn, what), string_agg(statement, E'\n' ORDER BY turn, what) INTO too_much, mend
    FROM (
        SELECT 1 AS turn, format('%I is a superuser or has CREATEDB, CREATEROLE, REPLICATION or BYPASSRLS', rolname) AS what,
            format('ALTER ROLE %I NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;', rolname) AS statement
        FROM pg_roles WHERE rolname = ANY (of_the_ledger)
            AND (rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls)
        UNION ALL
        SELECT 2, format('%s is a member of %s', member::regrole, roleid::regrole),
            format('REVOKE %s FROM %s GRANTED BY %s;', roleid::regrole, member::regrole, grantor::regrole)
        FROM pg_auth_members JOIN pg_roles r ON r.oid = member WHERE rolname = ANY (of_the_ledger)
        UNION ALL
        SELECT 3, format('%I owns the database', rolname), format('ALTER DATABASE %I OWNER TO %I;', this_database.datname,
            CASE WHEN current_user = ANY (of_the_ledger) THEN pg_get_userbyid(10) ELSE current_user END) -- 10 made the server
        FROM pg_roles WHERE oid = this_database.datdba AND rolname <> 'balance_owner' AND rolname = ANY (of_the_ledger)
        UNION ALL
        SELECT 4, format('%I owns the schema public', rolname), 'ALTER SCHEMA public OWNER TO pg_database_owner;'
        FROM pg_namespace JOIN pg_roles r ON r.oid = nspowner
        WHERE nspname = 'public' AND NOT rolsuper AND rolname NOT IN ('pg_database_owner', 'balance_owner')
            AND (r.oid <> this_database.datdba OR rolname = ANY (of_the_ledger))
        UNION ALL
        SELECT 5, format('%s owns %s', refobjid::regrole, string_agg(pg_describe_object(classid, objid, 0), ', ')),
            CASE WHEN to_regrole('balance_owner') IS NULL AND row_number() OVER (ORDER BY refobjid::regrole::text) = 1
                THEN E'CREATE ROLE balance_owner LOGIN NOINHERIT;\n' ELSE '' END
            || format('REASSIGN OWNED BY %s TO balance_owner; -- its other databases, too; before it, drop what you do not know',
                refobjid::regrole)
        FROM pg_shdepend JOIN pg_roles r ON r.oid = refobjid
        WHERE dbid = this_database.oid AND refclassid = 'pg_authid'::regclass AND deptype = 'o'
            AND rolname IN ('balance_service', 'balance_auditor')
            -- The first three have no part in the ledger; the ledger's tables change hands below, and the schema is told above.
            AND classid NOT IN ('pg_largeobject'::regclass, 'pg_default_acl'::regclass, 'pg_user_mapping'::regclass)
            AND NOT (classid = 'pg_namespace'::regclass AND objid = 'public'::regnamespace)
            AND NOT (classid = 'pg_class'::regclass AND objid IN (SELECT oid FROM pg_class
                WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
                    AND relname IN ('balance', 'balance_checkpoints', 'changes_history', '__diesel_schema_migrations')))
        GROUP BY refobjid) AS excess;
    IF too_much IS NOT NULL THEN
        RAISE EXCEPTION 'more rights than these roles are meant to have: %', too_much
            USING HINT = format(E'Type this in the database %I, as a superuser, and run this file again:\n%s',
                this_database.datname, mend);
    END IF;

    IF has_membership_options AND NOT is_superuser THEN
        SELECT string_agg(quote_ident(rolname), ', ' ORDER BY rolname) INTO foreign_roles
        FROM pg_roles WHERE rolname = ANY (of_the_ledger) AND NOT pg_has_role(current_user, oid, 'MEMBER WITH ADMIN OPTION');
        IF foreign_roles IS NOT NULL THEN
            RAISE EXCEPTION '% may not change the roles %, which somebody else made', current_user, foreign_roles
                USING HINT = format('Type this as a superuser or as who made them, and run this file again: '
                    'GRANT %s TO %I WITH ADMIN OPTION;', foreign_roles, current_user);
        END IF;
    END IF;

    FOREACH name IN ARRAY of_the_ledger LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I LOGIN NOCREATEDB NOCREATEROLE NOINHERIT', name);
        ELSIF (SELECT rolinherit FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('ALTER ROLE %I NOINHERIT', name); -- it is a member of nothing
        END IF;
    END LOOP;
    -- Only a member may give a role tables and set its default privileges.
    IF NOT is_superuser THEN
        IF NOT has_membership_options THEN
            IF NOT pg_has_role(current_user, 'balance_owner', 'MEMBER') THEN
                EXECUTE 'GRANT balance_owner TO CURRENT_USER';
            END IF;
        ELSIF NOT pg_has_role(current_user, 'balance_owner', 'USAGE')
            OR NOT pg_has_role(current_user, 'balance_owner', 'SET') THEN
            EXECUTE 'GRANT balance_owner TO CURRENT_USER WITH INHERIT TRUE, SET TRUE';
        END IF;
    END IF;

    -- Session settings of a replica belong to its role. A SET by the replica would stay on the server connection of a pooler,
    -- and in transaction mode change the session of another client; many poolers refuse them as parameters of the connection.
    -- The timeouts end a statement whose replica was cut off. The rest is for plans: every statement finds its rows by a
    -- primary key, whatever the parameters and however few rows there are yet, so one generic plan always serves.
    FOREACH setting IN ARRAY ARRAY['statement_timeout=10s', 'lock_timeout=5s', 'idle_in_transaction_session_timeout=10s',
        'plan_cache_mode=force_generic_plan', 'enable_seqscan=off', 'jit=off', 'client_min_messages=warning'] LOOP
        -- Only where it differs: PostgreSQL fails one of two runs that change a role's settings at once in different databases.
        IF NOT EXISTS (SELECT FROM pg_db_role_setting
            WHERE setrole = 'balance_service'::regrole AND setdatabase = 0 AND setting = ANY (setconfig)) THEN
            EXECUTE format('ALTER ROLE balance_service SET %I = %L', split_part(setting, '=', 1), split_part(setting, '=', 2));
        END IF;
    END LOOP;

    EXECUTE format('REVOKE CREATE, TEMPORARY ON DATABASE %I FROM balance_owner, balance_service, balance_auditor CASCADE',
        current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO balance_owner, balance_service, balance_auditor', current_database());
END
$$;

REVOKE CREATE ON SCHEMA public FROM balance_owner, balance_service, balance_auditor CASCADE;
GRANT USAGE ON SCHEMA public TO balance_owner, balance_service, balance_auditor;
GRANT CREATE ON SCHEMA public TO balance_owner;

-- What later migrations make can be read. Whether it can be written is for them to say, and nobody else is given anything.
DO $$
DECLARE
    default_right record;
BEGIN
    FOR default_right IN
        SELECT DISTINCT CASE WHEN defaclnamespace <> 0 THEN 'IN SCHEMA public' END AS in_schema,
            CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END AS grantee
        FROM pg_default_acl CROSS JOIN aclexplode(defaclacl)
        WHERE defaclrole = 'balance_owner'::regrole AND defaclobjtype = 'r' AND grantee <> defaclrole
            AND defaclnamespace IN (0, 'public'::regnamespace)
    LOOP
        EXECUTE format('ALTER DEFAULT PRIVILEGES FOR ROLE balance_owner %s REVOKE ALL ON TABLES FROM %s CASCADE',
            default_right.in_schema, default_right.grantee);
    END LOOP;
END
$$;
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
        EXECUTE format('REVOKE ALL ON public.%I FROM balance_service, balance_auditor CASCADE', ledger_table.name);
        EXECUTE format('GRANT SELECT ON public.%I TO balance_service, balance_auditor', ledger_table.name);
        IF ledger_table.writing IS NOT NULL THEN
            EXECUTE format('GRANT %s ON public.%I TO balance_service', ledger_table.writing, ledger_table.name);
        END IF;
    END LOOP;
END
$$;

-- What others were given, on the tables and their columns, and what would let them make tables or schemas; PostgreSQL itself
-- lets everybody make temporary tables, and before version 15 tables in this schema. Superusers and the database's owner keep
-- what they have, but not the right to hand it on. A second look makes sure, since a REVOKE that cannot do it only warns.
DO $$
DECLARE
    foreign_right record;
BEGIN
    FOR look IN 1..2 LOOP
        FOR foreign_right IN
            WITH given AS (
                SELECT format('TABLE public.%I', relname) AS what, 'ALL' AS rights, relowner AS owner, r.grantee, r.is_grantable
                FROM pg_class c CROSS JOIN LATERAL (
                    SELECT * FROM aclexplode(relacl)
                    UNION ALL
                    SELECT x.* FROM pg_attribute CROSS JOIN aclexplode(attacl) x WHERE attrelid = c.oid) AS r
                WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
                    AND relname IN ('balance', 'balance_checkpoints', 'changes_history', '__diesel_schema_migrations')
                UNION ALL
                SELECT 'SCHEMA public', 'CREATE', nspowner, grantee, is_grantable
                FROM pg_namespace CROSS JOIN aclexplode(nspacl)
                WHERE nspname = 'public' AND privilege_type = 'CREATE'
                UNION ALL
                SELECT format('DATABASE %I', datname), 'CREATE, TEMPORARY', datdba, grantee, is_grantable
                FROM pg_database CROSS JOIN aclexplode(coalesce(datacl, acldefault('d', datdba)))
                WHERE datname = current_database() AND privilege_type IN ('CREATE', 'TEMPORARY'))
            SELECT DISTINCT what, rights, keeps, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END AS grantee
            FROM (SELECT *, EXISTS (SELECT FROM pg_roles WHERE oid = grantee AND (rolsuper
                OR oid = (SELECT datdba FROM pg_database WHERE datname = current_database()))) AS keeps FROM given) AS g
            WHERE grantee <> owner AND (is_grantable OR NOT keeps)
                AND grantee NOT IN ('balance_owner'::regrole, 'balance_service'::regrole, 'balance_auditor'::regrole)
        LOOP
            IF look = 2 THEN
                RAISE EXCEPTION '% may not take away what % has on %', current_user, foreign_right.grantee, foreign_right.what
                    USING HINT = 'Run this file as a superuser.';
            END IF;
            EXECUTE format('REVOKE %s %s ON %s FROM %s CASCADE', CASE WHEN foreign_right.keeps THEN 'GRANT OPTION FOR' END,
                foreign_right.rights, foreign_right.what, foreign_right.grantee);
        END LOOP;
    END LOOP;
END
$$;

COMMIT;
