//! The mount program and its command line.
fn main() {}
