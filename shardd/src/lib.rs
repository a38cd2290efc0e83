//! One node: fragments in, fragments out, nothing it has not checked.
