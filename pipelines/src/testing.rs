//! What tests of resolving a pipeline share.

use crate::{Plan, Problem, load};

/// The beginning of a pipeline: devices that send a number. Steps follow, or other tables.
pub(crate) const HEAD: &str = r#"
name = "p"
[source]
type = "endpoint"
topics = ["t/{device}"]
[reading]
device = "{device}"
time = "ts"
[reading.fields]
v = "float64"
"#;

/// The plan of a pipeline's text, or everything that is wrong with it.
pub(crate) fn plan(text: String) -> Result<Plan, String> {
    load(&[("p.toml".into(), text)], &|_, n| Err(n.into()))
        .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

/// What is wrong with a pipeline's text, which cannot run.
pub(crate) fn problems(text: &str) -> Vec<Problem> {
    let files = [("p.toml".into(), text.to_owned())];
    load(&files, &|_, n| Err(n.into())).map(|_| ()).expect_err("it has mistakes")
}
