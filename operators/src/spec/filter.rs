//! What a filter and a route are asked for.

use super::Expr;

/// Keeps rows for which an expression is true.
#[derive(Clone, Debug)]
pub struct FilterSpec {
    /// True for the rows to keep.
    pub keep: Expr,
    /// Of rows that come again: how one that is not kept takes back what was kept of it before.
    pub takes_back: Option<TakesBack>,
}

/// Splits: a row goes to the first branch whose expression is true. Each branch is an edge of its
/// own name. Rows that no branch takes become `system.rejects` (reason `no_branch`).
#[derive(Clone, Debug)]
pub struct RouteSpec {
    /// The branches, in order.
    pub branches: Vec<(String, Expr)>,
    /// Of rows that come again: how one takes back what it was before in the branches that do not
    /// take it.
    pub takes_back: Option<TakesBack>,
}

/// Where a row says that it takes back those before it: it has no readings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakesBack {
    /// Column with the number of readings.
    pub rows: usize,
    /// Column with the revision: more than 0 if there can have been a row before.
    pub revision: usize,
    /// Column that says which rows are final, if none that is comes again: then there are only
    /// others to take back, and the row is none that is final.
    pub is_final: Option<usize>,
    /// Columns with what it says of its window: nothing, then. (A step behind the filter may fail
    /// on what the filter does not let pass.)
    pub clears: Vec<usize>,
}

impl From<Expr> for FilterSpec {
    fn from(keep: Expr) -> Self {
        Self { keep, takes_back: None }
    }
}

impl From<Vec<(String, Expr)>> for RouteSpec {
    fn from(branches: Vec<(String, Expr)>) -> Self {
        Self { branches, takes_back: None }
    }
}
