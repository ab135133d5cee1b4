//! stub
pub mod config;
pub mod dev;
pub mod domain;
pub mod operations_log;
