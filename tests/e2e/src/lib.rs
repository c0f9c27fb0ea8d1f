//! End-to-end tests: a whole cluster, driven with upstream's kubectl. All of them are in `tests/`.
