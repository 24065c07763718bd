//! `docs/conformance.md`.

/// The document.
pub fn document() -> String {
    String::new()
}
