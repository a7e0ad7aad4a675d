//! The `dassie` program.
fn main() {}
