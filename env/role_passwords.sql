-- Passwords of the roles of env/roles.sql, taken from the environment of psql (15 or later); a role whose variable is not set
-- keeps what it has.
--
--   BALANCE_OWNER_PASSWORD=… BALANCE_SERVICE_PASSWORD=… BALANCE_AUDITOR_PASSWORD=… \
--     psql --set=ON_ERROR_STOP=1 --file=env/roles.sql --file=env/role_passwords.sql "postgres://admin@host/balance"

-- Where statements are logged, these are not; only a superuser may say so.
SELECT rolsuper AS is_superuser FROM pg_roles WHERE rolname = current_user \gset
\if :is_superuser
SET log_statement = 'none';
SET log_min_duration_statement = -1;
SET log_min_error_statement = panic;
\endif

\getenv owner_password BALANCE_OWNER_PASSWORD
\if :{?owner_password}
ALTER ROLE balance_owner PASSWORD :'owner_password';
\endif

\getenv service_password BALANCE_SERVICE_PASSWORD
\if :{?service_password}
ALTER ROLE balance_service PASSWORD :'service_password';
\endif

\getenv auditor_password BALANCE_AUDITOR_PASSWORD
\if :{?auditor_password}
ALTER ROLE balance_auditor PASSWORD :'auditor_password';
\endif
