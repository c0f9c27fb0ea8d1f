//! The CNI plugins in one executable.
#![no_main]

mod entry;
