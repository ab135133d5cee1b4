//! Who may know whom: the table in `src/lib.rs`, held by reading the sources.
//!
//! A module of `src/` is a room. A room may name the rooms of the lines above its own, and itself. Paths are looked at
//! wherever they stand, in imports and in code, tests included; comments are not.

use std::fs;
use std::path::{Path, PathBuf};

/// Rooms from the bottom of the house up; those of one line do not know each other.
const ORDER: [&[&str]; 14] = [
    &["small_file"],
    &["causes", "domain", "progress", "tls", "version"],
    &["config"],
    &["telemetry"],
    &["metrics", "retry"],
    &["store", "approver", "operations_log", "tokens"],
    &["verify"],
    &["ledger"],
    &["service"],
    &["http"],
    &["server"],
    &["dev"],
    &["replica"],
    &["commands"],
];

/// Rooms that may know less than their line would let them.
const KNOWS_ONLY: [(&str, &[&str]); 1] = [("dev", &["domain", "progress", "tls", "config"])];

/// Those above all rooms, which wire them together, and the build script, which is a program of its own.
const EXEMPT: [&str; 3] = ["build.rs", "lib.rs", "main.rs"];

/// What the domain, which does no I/O and reads no clock, never names.
const NOT_IN_THE_DOMAIN: [&str; 17] = [
    "tokio",
    "tokio_postgres",
    "tokio_util",
    "diesel",
    "diesel_async",
    "deadpool",
    "poem",
    "poem_openapi",
    "reqwest",
    "futures_util",
    "async",
    "SystemTime::now",
    "Instant",
    "OffsetDateTime::now_utc",
    "std::fs",
    "std::net",
    "std::env",
];

/// A source file: its path below `src`, and its lines without comments.
struct Source {
    path: PathBuf,
    lines: Vec<String>,
}

impl Source {
    fn new(path: &Path, text: &str) -> Self {
        let lines = text
            .lines()
            .map(|line| line.split("//").next().unwrap_or_default().to_owned());
        Self {
            path: path.to_owned(),
            lines: lines.collect(),
        }
    }

    /// The modules that lead to the file: `["store", "changes"]`.
    fn module(&self) -> Vec<String> {
        let path = self.path.with_extension("");
        let parts = path.iter().map(|part| part.to_str().unwrap().to_owned());
        parts.filter(|part| part != "mod").collect()
    }

    fn room(&self) -> String {
        self.module()[0].clone()
    }

    /// The line of an occurrence, for the message.
    fn at(&self, index: usize) -> String {
        format!("{}:{}: {}", self.path.display(), index + 1, self.lines[index].trim())
    }

    /// The rooms that are named, with the number of the line. rustfmt has laid the text out, so that an inline module
    /// ends with a brace as far in as its beginning.
    fn named_rooms(&self) -> Vec<(String, usize)> {
        let mut named = Vec::new();
        let mut inline: Vec<usize> = Vec::new();
        let depth_of_file = self.module().len();
        for (index, line) in self.lines.iter().enumerate() {
            let indentation = line.len() - line.trim_start().len();
            if line.trim() == "}" && inline.last() == Some(&indentation) {
                inline.pop();
            }
            let depth = depth_of_file + inline.len();
            // A tree of imports may go on over several lines; joined, its first names are found.
            let rest = self.lines[index..]
                .iter()
                .take(40)
                .map(|line| line.trim())
                .collect::<Vec<_>>();
            let rest = rest.join(" ");
            let (line_length, text) = (line.trim().len(), rest.as_str());
            for start in paths_to_the_root(text, line_length, depth) {
                named.extend(first_names(&text[start..]).into_iter().map(|room| (room, index)));
            }
            let is_module = line.trim_start().trim_start_matches("pub ").starts_with("mod ");
            if is_module && line.trim_end().ends_with('{') {
                inline.push(indentation);
            }
        }
        named
    }
}

/// Where, in the first `length` bytes, something follows that is looked up at the root of the crate: after `crate::`, or
/// after as many `super::` as the module is deep.
fn paths_to_the_root(text: &str, length: usize, depth: usize) -> Vec<usize> {
    let to_root = ["crate::".to_owned(), "balance::".to_owned(), "super::".repeat(depth)];
    let mut places = Vec::new();
    for prefix in to_root {
        for (start, _) in text.match_indices(&prefix).take_while(|(start, _)| *start < length) {
            let before = text[..start].chars().next_back();
            if !before.is_some_and(|before| before.is_alphanumeric() || "_:".contains(before)) {
                places.push(start + prefix.len());
            }
        }
    }
    places
}

/// The first name of a path, or those of all branches of `{a::b, c}`.
fn first_names(path: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        let name = text.trim_start();
        name.chars()
            .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
            .collect()
    };
    let Some(tree) = path.strip_prefix('{') else {
        return vec![name(path)];
    };
    let mut names = Vec::new();
    let mut depth = 0_usize;
    let mut branch = 0;
    for (place, letter) in tree.char_indices() {
        match letter {
            '{' => depth += 1,
            ',' | '}' if depth == 0 => {
                names.push(name(&tree[branch..place]));
                branch = place + 1;
                if letter == '}' {
                    break;
                }
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

fn line_of(room: &str) -> Option<usize> {
    ORDER.iter().position(|rooms| rooms.contains(&room))
}

/// Whether `room` may name `other`.
fn may_know(room: &str, other: &str) -> bool {
    if room == other {
        return true;
    }
    if let Some((_, known)) = KNOWS_ONLY.iter().find(|(own, _)| *own == room) {
        return known.contains(&other);
    }
    matches!((line_of(room), line_of(other)), (Some(own), Some(other)) if other < own)
}

/// What breaks the order in these sources.
fn breaches(sources: &[Source]) -> Vec<String> {
    let mut breaches = Vec::new();
    for source in sources {
        let room = source.room();
        if line_of(&room).is_none() {
            breaches.push(format!(
                "{}: the room `{room}` has no place in the order",
                source.path.display()
            ));
            continue;
        }
        for (other, line) in source.named_rooms() {
            if !may_know(&room, &other) {
                breaches.push(format!("`{room}` must not know `{other}`: {}", source.at(line)));
            }
        }
    }
    breaches
}

/// Where `word` stands as a whole name.
fn naming<'a>(source: &'a Source, word: &'a str) -> impl Iterator<Item = String> + 'a {
    let is_part = |letter: Option<char>| letter.is_some_and(|letter| letter.is_alphanumeric() || letter == '_');
    let named = move |line: &String| {
        line.match_indices(word).any(|(start, _)| {
            let (before, after) = (&line[..start], &line[start + word.len()..]);
            !is_part(before.chars().next_back()) && !is_part(after.chars().next())
        })
    };
    let lines = source.lines.iter().enumerate().filter(move |(_, line)| named(line));
    lines.map(move |(index, _)| format!("`{word}`: {}", source.at(index)))
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Vec::new();
    let mut directories = vec![root.clone()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                sources.push(Source::new(path.strip_prefix(&root).unwrap(), &text));
            }
        }
    }
    sources.retain(|source| !EXEMPT.iter().any(|exempt| source.path == Path::new(exempt)));
    sources.sort_by(|one, other| one.path.cmp(&other.path));
    assert!(sources.len() > 20, "the sources are found");
    sources
}

#[test]
fn imports_point_up_the_table_only() {
    let breaches = breaches(&sources());
    assert!(breaches.is_empty(), "\n{}", breaches.join("\n"));
}

/// It sees the service as any client does, over HTTP.
#[test]
fn the_demo_names_nothing_of_the_service() {
    let sources = sources();
    let demo: Vec<_> = sources
        .iter()
        .filter(|source| source.path.starts_with("dev/demo"))
        .collect();
    assert!(demo.len() > 3, "the demo is found");
    let named: Vec<_> = demo
        .iter()
        .flat_map(|source| {
            source
                .named_rooms()
                .into_iter()
                .map(|(room, line)| (room, source.at(line)))
        })
        .collect();
    assert!(named.is_empty(), "{named:?}");
}

#[test]
fn the_domain_does_no_io_and_reads_no_clock() {
    let sources = sources();
    let domain = sources.iter().filter(|source| source.room() == "domain");
    let named: Vec<_> = domain
        .flat_map(|source| NOT_IN_THE_DOMAIN.iter().flat_map(|word| naming(source, word)))
        .collect();
    assert!(named.is_empty(), "\n{}", named.join("\n"));
}

#[test]
fn one_module_names_the_crate_backoff() {
    let sources = sources();
    let naming_it = |source: &&Source| {
        naming(source, "backoff::")
            .chain(naming(source, "use backoff"))
            .next()
            .is_some()
    };
    let naming_it: Vec<_> = sources
        .iter()
        .filter(naming_it)
        .map(|source| source.path.clone())
        .collect();
    assert_eq!(naming_it, [Path::new("retry.rs")]);
}

#[test]
fn the_order_is_that_of_the_crates_documentation() {
    let documentation = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let order = ORDER.map(|rooms| {
        rooms
            .iter()
            .map(|room| format!("`{room}`"))
            .collect::<Vec<_>>()
            .join(", ")
    });
    let words = |text: &str| {
        text.split_whitespace()
            .filter(|word| *word != "//!")
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert!(
        words(&documentation).contains(&order.join("; ")),
        "{}",
        order.join("; ")
    );
}

#[test]
fn a_breach_is_seen_however_it_is_written() {
    let breaking = [
        ("store/changes.rs", "use crate::service::Service;"),
        ("store/mod.rs", "use super::service;"),
        ("store/changes.rs", "use super::super::approver::Verdict;"),
        ("store.rs", "mod tests {\n    use super::super::approver;\n}"),
        (
            "store/reads.rs",
            "use crate::{\n    domain::{Timestamp, UserId},\n    http::Problem,\n};",
        ),
        ("store/reads.rs", "    let verdict = f(&crate::approver::ask());"),
        ("approver.rs", "use crate::operations_log::Record;"),
        ("dev/mod.rs", "use crate::store::migrate;"),
        ("domain/operation.rs", "use crate::config::Config;"),
        ("config.rs", "use balance::dev;"),
        ("elsewhere.rs", ""),
    ];
    for (path, text) in breaking {
        assert_eq!(
            breaches(&[Source::new(Path::new(path), text)]).len(),
            1,
            "{path}: {text}"
        );
    }
    let keeping = [
        (
            "store/changes.rs",
            "use super::error::classify;\nuse crate::domain::{Acceptance, Breach};",
        ),
        (
            "dev/mod.rs",
            "pub use approver::StandIn;\n// crate::service is not known here",
        ),
        ("dev/postgres.rs", "mod tests {\n    use super::approver;\n}"),
        (
            "commands/dev.rs",
            "use crate::{dev, replica};\nuse crate::store::migrate;",
        ),
        ("http/mod.rs", "use crate::service::{self, Service};"),
    ];
    for (path, text) in keeping {
        assert_eq!(
            breaches(&[Source::new(Path::new(path), text)]),
            [""; 0],
            "{path}: {text}"
        );
    }
    let clock = Source::new(Path::new("domain/operation.rs"), "let now = SystemTime::now();");
    assert_eq!(naming(&clock, "SystemTime::now").count(), 1);
    assert_eq!(naming(&clock, "System").count(), 0);
}
