//! Paths in one spelling: dot segments removed, unreserved characters decoded, slashes merged, as far as configured.
//!
//! Before: the request line. After: route matching. Pure. The rules are RFC 3986 section 6.2.2 and Envoy's
//! `normalize_path` and `merge_slashes`.

/// What is done to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spelling {
    /// Dot segments, `\` and escapes of unreserved characters.
    pub normalize: bool,
    /// `//` becomes `/`.
    pub merge_slashes: bool,
}

/// `path_and_query` in its one spelling; `None` when it has it already.
///
/// # Errors
/// The path has an escaped NUL.
pub fn respell(path_and_query: &str, spelling: Spelling) -> Result<Option<String>, InvalidPath> {
    let (path, query) = match path_and_query.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path_and_query, None),
    };
    let mut new = path.to_owned();
    if spelling.normalize {
        new = remove_dot_segments(&decode_unreserved(path)?)?;
    }
    if spelling.merge_slashes {
        while new.contains("//") {
            new = new.replace("//", "/");
        }
    }
    if new == path {
        return Ok(None);
    }
    if let Some(query) = query {
        new.push('?');
        new.push_str(query);
    }
    Ok(Some(new))
}

/// The path cannot be put into its one spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the path cannot be normalised")]
pub struct InvalidPath;

/// An escape that is none stays as it is, as in Envoy.
fn decode_unreserved(path: &str) -> Result<String, InvalidPath> {
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(character) = rest.chars().next() {
        rest = &rest[character.len_utf8()..];
        match character {
            '\\' => decoded.push('/'),
            '%' => match escape(rest) {
                None => decoded.push('%'),
                Some(0) => return Err(InvalidPath),
                Some(code) => {
                    rest = &rest[2..];
                    if code.is_ascii_alphanumeric() || b"-._~".contains(&code) {
                        decoded.push(char::from(code));
                    } else {
                        decoded.push_str(&format!("%{code:02X}"));
                    }
                }
            },
            character => decoded.push(character),
        }
    }
    Ok(decoded)
}

/// The byte that two hexadecimal digits stand for.
fn escape(digits: &str) -> Option<u8> {
    let digits = digits.get(..2).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
    u8::from_str_radix(digits, 16).ok()
}

/// RFC 3986 section 5.2.4: there is nothing above the root, and `..` there leads nowhere.
fn remove_dot_segments(path: &str) -> Result<String, InvalidPath> {
    let mut segments: Vec<&str> = Vec::new();
    let mut rest = path.strip_prefix('/').ok_or(InvalidPath)?.split('/').peekable();
    while let Some(segment) = rest.next() {
        let last = rest.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    segments.pop();
                }
                if last {
                    segments.push("");
                }
            }
            segment => segments.push(segment),
        }
    }
    Ok(format!("/{}", segments.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_gets_its_one_spelling() {
        let both = Spelling { normalize: true, merge_slashes: true };
        let normalize = Spelling { normalize: true, merge_slashes: false };
        for (spelling, path, expected) in [
            (normalize, "/a/b?c=../d", Ok(None)),
            (normalize, "/a/./b", Ok(Some("/a/b"))),
            (normalize, "/a/../b?q", Ok(Some("/b?q"))),
            (normalize, "/a/b/..", Ok(Some("/a/"))),
            (normalize, "/a/.", Ok(Some("/a/"))),
            (normalize, "/%61%2e%2E/b", Ok(Some("/a../b"))),
            (normalize, "/a/%2e%2e/b", Ok(Some("/b"))),
            (normalize, "/a%2fb", Ok(Some("/a%2Fb"))),
            (normalize, "/a\\b", Ok(Some("/a/b"))),
            (normalize, "/a//b", Ok(None)),
            (both, "/a//b///c", Ok(Some("/a/b/c"))),
            (normalize, "/../a", Ok(Some("/a"))),
            (normalize, "/a/../../b", Ok(Some("/b"))),
            (normalize, "/..", Ok(Some("/"))),
            (normalize, "/%00", Err(InvalidPath)),
            (normalize, "/%zz", Ok(None)),
            (normalize, "/%4", Ok(None)),
            (normalize, "/%+1%\u{e9}", Ok(None)),
        ] {
            assert_eq!(respell(path, spelling), expected.map(|path| path.map(str::to_owned)), "{path}");
        }
    }
}
