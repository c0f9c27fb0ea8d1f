//! The probe of these tests: see [`skiff_test_harness::probe`].

fn main() -> anyhow::Result<()> {
    skiff_test_harness::probe::main(std::env::args().skip(1))
}
