//! The client that progenitor makes of `openapi/openapi.json`, so that whatever a test asks through it proves the document.

#![allow(clippy::pedantic, unused_imports, reason = "the code is progenitor's")]

progenitor::generate_api!(spec = "openapi/openapi.json", interface = Builder, hooks = Expected,);
