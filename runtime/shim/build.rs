//! Links the shim at a fixed address. A position-independent program relocates itself when it starts, which
//! leaves every pod with its own copy of some hundred KiB of tables that could be one for all.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bins=-no-pie");
    println!("cargo::rustc-link-arg-bins=-static");
}
