//! One promise a file; see README.
