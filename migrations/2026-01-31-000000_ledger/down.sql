DROP TABLE balance_checkpoints;
DROP TABLE changes_history;
DROP TABLE balance;
