//! Prints the mesh's CustomResourceDefinitions, writes them as the chart's files, or compares them with those that Istio
//! publishes.

use std::path::Path;
use std::process::ExitCode;

use mesh_api::crd::Kind;
use mesh_api::crd::compare::compare;
use mesh_api::crd::definition::{file_name, text};

const USAGE: &str = "usage: mesh-crds                  print all definitions as YAML
       mesh-crds --write DIR      write each definition to a file of its own in the directory DIR
       mesh-crds --compare PATH   compare their fields with Istio's definitions in the file PATH";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => print(),
        ["--write", directory] => write(Path::new(directory)),
        ["--compare", path] => compare_with(path),
        ["-h" | "--help"] => {
            println!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        _ => Err(USAGE.to_owned()),
    };
    outcome.unwrap_or_else(|message| {
        eprintln!("{message}");
        ExitCode::from(2)
    })
}

fn print() -> Result<ExitCode, String> {
    for kind in Kind::ALL {
        print!(
            "---\n{}",
            text(*kind).map_err(|e| format!("{kind} cannot be written: {e}"))?
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn write(directory: &Path) -> Result<ExitCode, String> {
    for kind in Kind::ALL {
        let text = text(*kind).map_err(|e| format!("{kind} cannot be written: {e}"))?;
        let path = directory.join(file_name(*kind));
        std::fs::write(&path, text).map_err(|e| format!("{} cannot be written: {e}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn compare_with(path: &str) -> Result<ExitCode, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{path} cannot be read: {e}"))?;
    let comparison = compare(&text).map_err(|e| format!("{path}: {e}"))?;
    for difference in &comparison.differences {
        println!("{difference}");
    }
    println!(
        "{} fields in common, {} extensions, {} differences",
        comparison.common,
        comparison.extensions,
        comparison.differences.len()
    );
    Ok(if comparison.differences.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
