//! The upstream end-to-end tests of Services, and what shows the same here.

/// An upstream test.
#[derive(Clone, Copy, Debug)]
pub struct E2eTest {
    /// Its file in `test/e2e/network`.
    pub file: &'static str,
    /// What it is called, shortened.
    pub name: &'static str,
    /// It is part of Conformance.
    pub conformance: bool,
    /// What shows the same.
    pub proven: Proven,
}

/// What shows it.
#[derive(Clone, Copy, Debug)]
pub enum Proven {
    /// Rules of the table, by id.
    Rules(&'static [&'static str]),
    /// Tests, named `package: function`.
    Tests(&'static [&'static str]),
    /// No proxy is involved: why.
    NotOurs(&'static str),
    /// Not covered: why.
    No(&'static str),
}

/// All of them.
pub const E2E: &[E2eTest] = &[];
