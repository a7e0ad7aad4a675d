//! (written in the first slice)
