//! Page walks and the software TLB.
