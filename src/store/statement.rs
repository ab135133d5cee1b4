//! SQL written as SQL: statements that are prepared once per connection, and fail unless PostgreSQL runs the right one.
//!
//! diesel prepares `sql_query`, `UPDATE` and batch `INSERT` anew each time, one more round trip. A query type of our own
//! with a static `QueryId` is prepared once per connection and then only executed.
//!
//! tokio-postgres names prepared statements `s0`, `s1`, … in each process. A pooler that shares server connections without
//! tracking these names runs one replica's statement for another's. So each statement has a [`Proof`], sends it as a
//! parameter, and compares it before it reads or writes a row. The same condition refuses standbys and read-only sessions.
//! Where it does not hold, PostgreSQL raises an error, and the statement has done nothing.

use diesel::pg::Pg;
use diesel::query_builder::AstPass;

use super::ConnectionFailure;

/// How the error of the condition begins. It stands in the error's text in every language of PostgreSQL.
const WRONG: &str = "balance: statement ";
const READ_ONLY: &str = "transaction_read_only=on";

/// Tells a statement from every other, also from the same statement of another version: 16 hexadecimal digits.
pub(super) struct Proof([u8; 16]);

impl Proof {
    /// The proof of a statement with these parts: a 64-bit FNV-1a hash.
    pub(super) const fn of(parts: &[&str]) -> Self {
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        let mut part = 0;
        while part < parts.len() {
            let bytes = parts[part].as_bytes();
            let mut index = 0;
            while index < bytes.len() {
                hash = (hash ^ bytes[index] as u64).wrapping_mul(0x0100_0000_01b3);
                index += 1;
            }
            part += 1;
        }
        let mut digits = [0; 16];
        let mut digit = 0;
        while digit < digits.len() {
            digits[digit] = b"0123456789abcdef"[(hash >> (60 - 4 * digit) & 0xf) as usize];
            digit += 1;
        }
        Self(digits)
    }

    pub(super) const fn as_str(&self) -> &str {
        match std::str::from_utf8(&self.0) {
            Ok(digits) => digits,
            Err(_) => unreachable!(),
        }
    }

    /// Ends the common table expression with the condition on the parameter `proof`.
    ///
    /// Without columns and volatile functions it is evaluated once, before anything else of the statement. The error's text
    /// is no constant, so that PostgreSQL does not evaluate it while it plans.
    pub(super) fn push_condition(&self, out: &mut AstPass<'_, '_, Pg>) {
        for sql in [
            " WHERE CASE WHEN proof = '",
            self.as_str(),
            "' AND current_setting('transaction_read_only') = 'off' THEN true ELSE ('",
            WRONG,
            self.as_str(),
            " was asked as ' || proof || ', transaction_read_only=' || current_setting('transaction_read_only'))::boolean END)\n",
        ] {
            out.push_sql(sql);
        }
    }
}

/// Why the condition of a statement did not hold, if an error with this message is that of the condition.
pub(super) fn failed_condition(message: &str) -> Option<ConnectionFailure> {
    let (_, rest) = message.split_once(WRONG)?;
    Some(match rest.contains(READ_ONLY) {
        true => ConnectionFailure::ReadOnly,
        false => ConnectionFailure::SharedStatements,
    })
}

/// Declares a statement: a struct of its parameters, which stand in a common table expression `asked` of one row, and the
/// SQL that follows it. `=> (…)` lists the SQL types of the columns it returns. Each statement reads from `asked`, whose
/// condition is the statement's [`Proof`].
macro_rules! statement {
    (
        $(#[$meta:meta])*
        struct $name:ident<$lifetime:lifetime> { $($field:ident: $type:ty => $sql_type:ty,)+ }
        => ($($column:ty),+ $(,)?)
        $sql:expr
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy)]
        struct $name<$lifetime> { $($field: $type,)+ }

        impl $name<'_> {
            const PROOF: &'static $crate::store::statement::Proof = &$crate::store::statement::Proof::of(&[
                concat!($(stringify!($field), " ", stringify!($sql_type), ","),+),
                concat!($(stringify!($column), ","),+),
                $sql,
            ]);
        }

        // The SQL depends on nothing but the type, so the type names it.
        impl diesel::query_builder::QueryId for $name<'_> {
            type QueryId = $name<'static>;
            const HAS_STATIC_QUERY_ID: bool = true;
        }

        impl diesel::query_builder::Query for $name<'_> {
            type SqlType = ($($column,)+);
        }

        impl diesel::query_builder::QueryFragment<diesel::pg::Pg> for $name<'_> {
            fn walk_ast<'b>(
                &'b self,
                mut out: diesel::query_builder::AstPass<'_, 'b, diesel::pg::Pg>,
            ) -> diesel::QueryResult<()> {
                out.push_sql("WITH asked AS (SELECT * FROM (VALUES (");
                $(
                    out.push_bind_param::<$sql_type, _>(&self.$field)?;
                    out.push_sql(", ");
                )+
                out.push_bind_param::<diesel::sql_types::Text, _>(Self::PROOF.as_str())?;
                out.push_sql(concat!(")) AS given (", $("\"", stringify!($field), "\", ",)+ "proof)"));
                Self::PROOF.push_condition(&mut out);
                out.push_sql($sql);
                Ok(())
            }
        }
    };
}

pub(super) use statement;
