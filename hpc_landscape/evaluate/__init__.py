"""Points -> metric values."""
