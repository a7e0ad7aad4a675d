//! What may become part of Dassie: `deny.toml`, checked on what `cargo metadata` says.
//!
//! Owns: the reading of that file's licences, bans and sources, as `cargo deny` reads them; that program itself takes longer to
//! compile than all tests run. Promises: every package of every target is judged, and an entry that is not understood here is a
//! failure, not an exception. Does not know: advisories and yanked versions, which need a network (`cargo deny check`, by
//! `.ci/run` where it is installed), and licence texts: it believes what packages declare.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use toml::Table;

/// A package as it would be built in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    /// None: it is ours.
    source: Option<String>,
}

impl Package {
    fn label(&self) -> String {
        format!("{} {}", self.name, self.version)
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rules() -> Table {
    let text = std::fs::read_to_string(root().join("deny.toml")).expect("deny.toml is there");
    text.parse().expect("deny.toml is TOML")
}

fn texts(value: &toml::Value) -> Vec<String> {
    let all = value.as_array().expect("a list");
    all.iter().map(|text| text.as_str().expect("a text").to_owned()).collect()
}

/// Everything that is resolved for a target.
fn packages(target: &str) -> BTreeSet<Package> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let words = ["metadata", "--format-version=1", "--locked", "--all-features", "--filter-platform", target];
    let output = Command::new(cargo).args(words).current_dir(root()).output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let known: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let list = |value: &Value| value.as_array().expect("a list").clone();
    let resolved: BTreeSet<String> = list(&known["resolve"]["nodes"])
        .iter()
        .map(|node| node["id"].as_str().expect("an id").to_owned())
        .collect();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    list(&known["packages"])
        .iter()
        .filter(|package| resolved.contains(package["id"].as_str().expect("an id")))
        .map(|package| Package {
            name: text(&package["name"]).expect("a name"),
            version: text(&package["version"]).expect("a version"),
            license: text(&package["license"]),
            source: text(&package["source"]),
        })
        .collect()
}

fn all_packages(rules: &Table) -> BTreeSet<Package> {
    let targets = texts(&rules["graph"]["targets"]);
    targets.iter().flat_map(|target| packages(target)).collect()
}

/// Is a licence expression satisfied by the allowed ones? `/` is how old packages write OR.
fn is_licensed(expression: &str, allowed: &[String]) -> Result<bool, String> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let satisfied = alternatives(&words, &mut at, allowed)?;
    if at == words.len() { Ok(satisfied) } else { Err(format!("'{}' is not expected", words[at])) }
}

fn alternatives(words: &[&str], at: &mut usize, allowed: &[String]) -> Result<bool, String> {
    let mut any = together(words, at, allowed)?;
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        any |= together(words, at, allowed)?;
    }
    Ok(any)
}

fn together(words: &[&str], at: &mut usize, allowed: &[String]) -> Result<bool, String> {
    let mut all = one(words, at, allowed)?;
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        all &= one(words, at, allowed)?;
    }
    Ok(all)
}

fn one(words: &[&str], at: &mut usize, allowed: &[String]) -> Result<bool, String> {
    let word = *words.get(*at).ok_or("it ends too early")?;
    *at += 1;
    if word == "(" {
        let inner = alternatives(words, at, allowed)?;
        if words.get(*at) != Some(&")") {
            return Err("a bracket is open".to_owned());
        }
        *at += 1;
        return Ok(inner);
    }
    if ["OR", "AND", "WITH", ")"].contains(&word) {
        return Err(format!("'{word}' is not expected"));
    }
    let mut name = word.to_owned();
    if words.get(*at) == Some(&"WITH") {
        name = format!("{word} WITH {}", words.get(*at + 1).ok_or("an exception is missing")?);
        *at += 2;
    }
    Ok(allowed.contains(&name))
}

/// What no rule allows: `name version: why`.
fn licence_faults(packages: &BTreeSet<Package>, rules: &Table) -> Vec<String> {
    let allowed = texts(&rules["licenses"]["allow"]);
    let fault = |package: &Package| {
        let why = match package.license.as_deref().map(|expression| is_licensed(expression, &allowed)) {
            Some(Ok(true)) => return None,
            Some(Ok(false)) => format!("{:?} is not allowed", package.license),
            Some(Err(error)) => format!("{:?}: {error}", package.license),
            None => "it declares no licence".to_owned(),
        };
        Some(format!("{}: {why}", package.label()))
    };
    packages.iter().filter_map(fault).collect()
}

fn source_faults(packages: &BTreeSet<Package>) -> Vec<String> {
    const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";
    let foreign = |p: &&Package| p.source.as_deref().is_some_and(|source| source != REGISTRY);
    packages.iter().filter(foreign).map(|p| format!("{}: from {:?}", p.label(), p.source)).collect()
}

/// A ban: a name, and below which first number of the version.
fn ban(entry: &toml::Value) -> (String, Option<u64>) {
    let spec = entry["crate"].as_str().expect("a crate");
    assert!(entry.get("reason").is_some(), "{spec}: a ban has its reason");
    match spec.split_once('@') {
        None => (spec.to_owned(), None),
        Some((name, range)) => {
            let below = range.strip_prefix('<').and_then(|number| number.parse().ok());
            (name.to_owned(), Some(below.unwrap_or_else(|| panic!("{spec}: only `@<N` is understood here"))))
        }
    }
}

fn ban_faults(packages: &BTreeSet<Package>, rules: &Table) -> Vec<String> {
    let bans: Vec<_> = rules["bans"]["deny"].as_array().expect("a list").iter().map(ban).collect();
    let major = |package: &Package| package.version.split('.').next().and_then(|n| n.parse::<u64>().ok());
    let banned = |package: &&Package| {
        bans.iter().any(|(name, below)| {
            *name == package.name && below.is_none_or(|below| major(package).is_none_or(|m| m < below))
        })
    };
    packages.iter().filter(banned).map(|package| format!("{}: is banned", package.label())).collect()
}

#[test]
fn licences_sources_and_bans_are_kept_on_every_target() {
    let rules = rules();
    let packages = all_packages(&rules);
    assert!(packages.len() > 100, "only {} packages were found", packages.len());
    let mut faults = licence_faults(&packages, &rules);
    faults.extend(source_faults(&packages));
    faults.extend(ban_faults(&packages, &rules));
    assert!(faults.is_empty(), "deny.toml does not allow:\n{}", faults.join("\n"));
    // Only a warning there, too.
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in &packages {
        versions.entry(&package.name).or_default().insert(&package.version);
    }
    for (name, several) in versions.into_iter().filter(|(_, several)| several.len() > 1) {
        println!("{name} is there in several versions: {several:?}");
    }
}

#[test]
fn an_expression_is_read_as_spdx_reads_it() {
    let allowed = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned);
    for (expression, expected) in [
        ("MIT", Ok(true)),
        ("GPL-3.0", Ok(false)),
        ("GPL-3.0 OR MIT", Ok(true)),
        ("GPL-3.0/MIT", Ok(true)),
        ("MIT AND GPL-3.0", Ok(false)),
        ("MIT AND (GPL-3.0 OR ISC)", Ok(true)),
        ("(GPL-3.0 OR MIT) AND Unicode-3.0", Ok(false)),
        ("Apache-2.0 WITH LLVM-exception", Ok(true)),
        ("Apache-2.0", Ok(false)),
        ("MIT OR GPL-3.0 AND GPL-2.0", Ok(true)),
        ("", Err(())),
        ("MIT ISC", Err(())),
        ("(MIT", Err(())),
        ("MIT OR", Err(())),
        ("Apache-2.0 WITH", Err(())),
    ] {
        assert_eq!(is_licensed(expression, &allowed).map_err(|_| ()), expected, "{expression}");
    }
}

#[test]
fn planted_packages_are_found() {
    let rules = rules();
    let planted = |name: &str, version: &str, license: Option<&str>, source: Option<&str>| {
        let package = Package {
            name: name.to_owned(),
            version: version.to_owned(),
            license: license.map(str::to_owned),
            source: source.map(str::to_owned),
        };
        let one = BTreeSet::from([package]);
        (licence_faults(&one, &rules).len(), source_faults(&one).len(), ban_faults(&one, &rules).len())
    };
    let registry = Some("registry+https://github.com/rust-lang/crates.io-index");
    assert_eq!(planted("good", "1.0.0", Some("MIT OR GPL-3.0"), registry), (0, 0, 0));
    assert_eq!(planted("silent", "1.0.0", None, registry), (1, 0, 0));
    assert_eq!(planted("copyleft", "1.0.0", Some("AGPL-3.0"), registry), (1, 0, 0));
    assert_eq!(planted("forked", "1.0.0", Some("MIT"), Some("git+https://example.org/x")), (0, 1, 0));
    assert_eq!(planted("openssl-sys", "0.9.1", Some("MIT"), registry), (0, 0, 1));
    assert_eq!(planted("protobuf", "2.28.0", Some("MIT"), registry), (0, 0, 1));
    assert_eq!(planted("protobuf", "3.7.2", Some("MIT"), registry), (0, 0, 0));
}

/// The fuzzer is a workspace of its own, built by `interop-tests/fuzz` alone: a dependency that we gain makes its lock file stale
/// without anybody seeing it here.
#[test]
fn the_fuzzers_lock_file_knows_all_we_depend_on() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = root().join("interop-tests/fuzzing/Cargo.toml");
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--locked", "--manifest-path"])
        .arg(manifest)
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
