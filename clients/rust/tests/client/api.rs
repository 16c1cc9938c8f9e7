//! The public interface, as text: a change of it shows in a review, and is meant.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use syn::{ImplItem, Item, Visibility};

/// The files with public items, in the order of the text.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

/// Tokens as text, without what is only said in documentation.
fn text(item: &impl quote::ToTokens) -> String {
    let mut text = item.to_token_stream().to_string();
    for (from, to) in [
        (" :: ", "::"),
        ("& ", "&"),
        (" ,", ","),
        (" <", "<"),
        ("< ", "<"),
        (" >", ">"),
        ("( ", "("),
        (" )", ")"),
        (" (", "("),
        (",)", ")"),
        (" :", ":"),
        (" ;", ";"),
        ("# [", "#["),
        ("mut self", "self"),
    ] {
        text = text.replace(from, to);
    }
    text
}

fn keep_markers(attributes: &mut Vec<syn::Attribute>) {
    attributes.retain(|it| {
        ["derive", "must_use", "non_exhaustive"]
            .iter()
            .any(|name| it.path().is_ident(name))
    });
}

fn describe(item: Item, lines: &mut Vec<String>) {
    match item {
        Item::Struct(mut item) if is_public(&item.vis) => {
            keep_markers(&mut item.attrs);
            let private = item.fields.iter().any(|field| !is_public(&field.vis));
            for field in &mut item.fields {
                field.attrs.clear();
            }
            if private {
                item.fields = syn::Fields::Unit;
                item.semi_token = Some(Default::default());
            }
            lines.push(text(&item));
        }
        Item::Enum(mut item) if is_public(&item.vis) => {
            keep_markers(&mut item.attrs);
            for variant in &mut item.variants {
                keep_markers(&mut variant.attrs);
                for field in &mut variant.fields {
                    field.attrs.clear();
                }
            }
            lines.push(text(&item));
        }
        Item::Impl(item) => {
            let of = text(&item.self_ty);
            if let Some((_, name, _)) = &item.trait_ {
                lines.push(format!("impl {} for {of}", text(name)));
                return;
            }
            for member in item.items {
                if let ImplItem::Fn(mut function) = member
                    && is_public(&function.vis)
                {
                    keep_markers(&mut function.attrs);
                    let attributes: String =
                        function.attrs.iter().map(|it| text(it) + " ").collect();
                    lines.push(format!("{of}: {attributes}{}", text(&function.sig)));
                }
            }
        }
        _ => {}
    }
}

#[test]
fn the_public_interface_is_the_one_that_was_reviewed() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let exported = fs::read_to_string(package.join("src/lib.rs")).expect("a file");
    let exported: String = exported
        .lines()
        .skip_while(|line| !line.starts_with("pub use"))
        .collect();
    let mut lines = Vec::new();
    for file in sources(&package.join("src")) {
        let source = fs::read_to_string(&file).expect("a file");
        for item in syn::parse_file(&source).expect("Rust").items {
            describe(item, &mut lines);
        }
    }
    // Of what is public in private modules, what the crate exports.
    let is_exported = |line: &&String| {
        let words = line.split(|char: char| !char.is_alphanumeric() && char != '_');
        let mut names = words.filter(|word| word.starts_with(char::is_uppercase));
        names.any(|name| {
            exported
                .split(|char: char| !char.is_alphanumeric())
                .any(|word| word == name)
        })
    };
    let mut lines: Vec<_> = lines.iter().filter(is_exported).cloned().collect();
    lines.sort();
    let present = lines.join("\n") + "\n";
    let path = package.join("tests/api.txt");
    if env::var_os("UPDATE_API").is_some() {
        fs::write(&path, &present).expect("written");
    }
    let reviewed = fs::read_to_string(&path).expect("a file");
    for line in present.lines() {
        assert!(
            reviewed.lines().any(|it| it == line),
            "new, or changed: {line}\n(UPDATE_API=1 writes tests/api.txt)"
        );
    }
    for line in reviewed.lines() {
        assert!(
            present.lines().any(|it| it == line),
            "gone, or changed: {line}\n(UPDATE_API=1 writes tests/api.txt)"
        );
    }
    // Nothing of the transport is part of it.
    for word in ["tonic", "prost", "proto"] {
        assert!(!present.contains(word), "{word}");
    }
}

#[test]
fn the_client_is_built_of_nothing_of_the_agent() {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--edges", "normal", "--prefix", "none"])
        .args([
            "--format",
            "{p}",
            "--all-features",
            "--package",
            env!("CARGO_PKG_NAME"),
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    let told = String::from_utf8_lossy(&tree.stderr);
    assert!(tree.status.success(), "cargo tree: {told}");
    let tree = String::from_utf8(tree.stdout).expect("UTF-8");
    let names: Vec<_> = tree
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert!(names.contains(&"tonic") && names.contains(&"ring"));
    for other in [
        "election-agent",
        "election-core",
        "election-proto",
        "election-redis",
        "axum",
        "aws-lc-sys",
        "openssl",
        "openssl-sys",
        "redis",
    ] {
        assert!(!names.contains(&other), "{other}");
    }
}
