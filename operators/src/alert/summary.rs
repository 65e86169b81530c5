//! Texts for people with `{column}` in them, taken apart.
//!
//! `{{` and `}}` are the braces themselves. A plan whose texts have other braces is refused where
//! it is checked; here nothing fails: what is no column stays as it is written.

/// A part of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'t> {
    /// Text as it is.
    Plain(&'t str),
    /// What stands between braces: the name of a column.
    Column(&'t str),
    /// A brace without its other half.
    Lone(&'t str),
}

/// The parts of a text in their order, each with the byte at which it begins.
pub fn pieces(text: &str) -> Vec<(usize, Piece<'_>)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        let brace = rest.find(['{', '}']).unwrap_or(rest.len());
        if brace > 0 {
            found.push((at, Piece::Plain(&rest[..brace])));
            at += brace;
            continue;
        }
        let (piece, taken) = match rest.as_bytes() {
            [b'{', b'{', ..] | [b'}', b'}', ..] => (Piece::Plain(&rest[..1]), 2),
            [b'{', inner @ ..] => match inner.iter().position(|b| matches!(b, b'{' | b'}')) {
                Some(end) if inner[end] == b'}' => (Piece::Column(&rest[1..=end]), end + 2),
                _ => (Piece::Lone(&rest[..1]), 1),
            },
            _ => (Piece::Lone(&rest[..1]), 1),
        };
        found.push((at, piece));
        at += taken;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::Piece::{Column, Lone, Plain};
    use super::*;

    #[test]
    fn braces_hold_columns_or_stand_for_themselves() {
        for (text, wanted) in [
            ("", &[][..]),
            ("°C", &[(0, Plain("°C"))]),
            ("{a}é{b}", &[(0, Column("a")), (3, Plain("é")), (5, Column("b"))]),
            ("{{a}}", &[(0, Plain("{")), (2, Plain("a")), (3, Plain("}"))]),
            ("{{{a}}}", &[(0, Plain("{")), (2, Column("a")), (5, Plain("}"))]),
            ("{}", &[(0, Column(""))]),
            ("{a", &[(0, Lone("{")), (1, Plain("a"))]),
            ("a}", &[(0, Plain("a")), (1, Lone("}"))]),
            ("{a{b}", &[(0, Lone("{")), (1, Plain("a")), (2, Column("b"))]),
        ] {
            assert_eq!(pieces(text), wanted, "{text}");
        }
    }
}
