//! What every answer tells browsers and proxies: that it is what it says it is, that nobody keeps it, and that what it holds
//! may load nothing.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use poem::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS};
use poem::http::{HeaderMap, HeaderValue};
use sha2::{Digest, Sha256};

use super::routes::{Audience, KnownRoute};

/// For answers that are no pages.
const NOTHING: HeaderValue = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");

/// Adds them, but for a policy that is there already.
pub fn protect(headers: &mut HeaderMap, route: Option<&KnownRoute>) {
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.entry(CONTENT_SECURITY_POLICY).or_insert(NOTHING);
    if let Some(header) = route.and_then(|route| route.varies_by) {
        headers.insert(VARY, HeaderValue::from_static(header));
    }
    // Balances are private, and a probe must not be answered from memory.
    if route.is_none_or(|route| route.audience != Audience::Administrator) {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
}

/// Those of an answer that belongs to no path.
pub fn protection() -> HeaderMap {
    let mut headers = HeaderMap::new();
    protect(&mut headers, None);
    headers
}

/// The policy of a page that has all it needs in it: exactly its own scripts and style sheets, by their hashes, and requests
/// to the service itself.
pub fn policy_of_page(page: &str) -> HeaderValue {
    let hashes = |tag| inline(page, tag).map(source).collect::<String>();
    let policy = format!(
        "default-src 'none'; script-src{}; style-src{}; img-src data:; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        hashes("script"),
        hashes("style"),
    );
    visible(policy)
}

/// The policy of a page that has nothing but this style sheet in it, and an empty icon.
pub fn policy_of_style(style: &str) -> HeaderValue {
    visible(format!(
        "default-src 'none'; style-src{}; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        source(style),
    ))
}

fn visible(policy: String) -> HeaderValue {
    HeaderValue::try_from(policy).expect("words and hashes in base64 are visible ASCII")
}

/// What stands between the tags of an element may be used.
fn source(text: &str) -> String {
    format!(" 'sha256-{}'", STANDARD.encode(Sha256::digest(text)))
}

/// What stands between the tags of each element of this name, in the order in which a browser comes to them.
fn inline<'a>(page: &'a str, tag: &str) -> impl Iterator<Item = &'a str> {
    let (begin, end) = (format!("<{tag}"), format!("</{tag}>"));
    let mut rest = page;
    std::iter::from_fn(move || {
        let (_, element) = rest.split_once(&begin)?;
        let (_, text) = element.split_once('>')?;
        let (text, behind) = text.split_once(&end)?;
        rest = behind;
        Some(text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_may_run_its_own_scripts_and_nothing_else() {
        let page = "<html><style charset=\"UTF-8\">a{}</style><script>one</script><body><script x='1'>two</script>";
        let found: Vec<_> = inline(page, "script").chain(inline(page, "style")).collect();
        assert_eq!(found, ["one", "two", "a{}"]);
        let policy = policy_of_page(page);
        let policy = policy.to_str().unwrap();
        // printf one | openssl dgst -sha256 -binary | base64
        let one = "'sha256-dpLDrTVAu4A8Ags67mbNiIcSMjTqDG5xQ8Ct1z/0Me0='";
        assert!(policy.contains("default-src 'none'; script-src 'sha256-"), "{policy}");
        assert!(policy.contains(one) && !policy.contains("unsafe"), "{policy}");
    }
}
