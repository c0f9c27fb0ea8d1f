//! What a Service is, as its clients see it: a table of cases played against a real proxy process. All of it is in the
//! test `semantics`, which `cargo xtask test semantics` runs.
