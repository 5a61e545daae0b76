//! Boots real guests and checks what they said.
