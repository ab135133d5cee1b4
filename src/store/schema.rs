// The tables of `migrations/`, as `diesel print-schema` writes them; a test compares this with the database.

diesel::table! {
    balance (user_id) {
        user_id -> Text,
        #[sql_name = "balance"]
        balance_ -> Int8,
        version -> Int8,
        latest -> Timestamptz,
        since_checkpoint -> Int4,
        recorded_at -> Timestamptz,
    }
}

diesel::table! {
    balance_checkpoints (user_id, timestamp) {
        user_id -> Text,
        timestamp -> Timestamptz,
        balance -> Int8,
        lowest -> Int8,
        highest -> Int8,
        recorded_from -> Timestamptz,
        recorded_until -> Timestamptz,
        all_recorded_until -> Timestamptz,
    }
}

diesel::table! {
    changes_history (user_id, timestamp, seq) {
        user_id -> Text,
        timestamp -> Timestamptz,
        seq -> Int8,
        balance_change -> Int8,
        balance_after -> Int8,
        context -> Text,
        operation_id -> Uuid,
        idempotency_key -> Nullable<Text>,
        approved -> Bool,
        instance -> Text,
        caller -> Nullable<Text>,
        recorded_at -> Timestamptz,
    }
}

diesel::allow_tables_to_appear_in_same_query!(balance, balance_checkpoints, changes_history,);
