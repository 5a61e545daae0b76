//! Differential tests: the host processor against the interpreter.
