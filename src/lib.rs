//! stub
pub mod config;
pub mod dev;
pub mod domain;
