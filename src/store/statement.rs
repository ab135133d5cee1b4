//! SQL written as SQL, prepared once per connection.
//!
//! diesel prepares `sql_query`, `UPDATE` and batch `INSERT` anew each time, one more round trip. A query type of our own
//! with a static `QueryId` is prepared once per connection and then only executed.

/// Declares a statement: a struct of its parameters, which stand in a common table expression `asked` of one row, and the
/// SQL that follows it. `=> (…)` lists the SQL types of the columns it returns.
macro_rules! statement {
    (
        $(#[$meta:meta])*
        struct $name:ident<$lifetime:lifetime> { $($field:ident: $type:ty => $sql_type:ty,)+ }
        => ($($column:ty),+ $(,)?)
        $sql:expr
    ) => {
        $(#[$meta])*
        struct $name<$lifetime> { $($field: $type,)+ }

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
                out.push_sql(concat!("WITH asked (", statement!(@list $($field),+), ") AS (VALUES ("));
                let mut separator = "";
                $(
                    out.push_sql(separator);
                    out.push_bind_param::<$sql_type, _>(&self.$field)?;
                    separator = ", ";
                )+
                let _ = separator;
                out.push_sql("))\n");
                out.push_sql($sql);
                Ok(())
            }
        }
    };
    (@list $first:ident $(, $rest:ident)*) => {
        concat!('"', stringify!($first), '"' $(, ", \"", stringify!($rest), '"')*)
    };
}

pub(super) use statement;
