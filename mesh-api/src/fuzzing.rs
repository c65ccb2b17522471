//! Bodies of the fuzz targets under `fuzz/`: a body takes any bytes and panics when a promise is broken.

use crate::wire::{
    decode_destination, decode_inbound, decode_mesh, decode_slice, decode_workload, encode_destination, encode_inbound,
    encode_mesh, encode_slice, encode_workload,
};

/// Resources: any bytes are decoded or refused, and what was decoded survives another round.
pub fn fuzz_wire(data: &[u8]) {
    if let Ok(settings) = decode_mesh(data) {
        assert_eq!(decode_mesh(&encode_mesh(&settings)), Ok(settings));
    }
    if let Ok(inbound) = decode_inbound(data) {
        assert_eq!(decode_inbound(&encode_inbound(&inbound)), Ok(inbound));
    }
    if let Ok(destination) = decode_destination(data) {
        assert_eq!(decode_destination(&encode_destination(&destination)), Ok(destination));
    }
    if let Ok(slice) = decode_slice(data) {
        assert_eq!(decode_slice(&encode_slice(&slice)), Ok(slice));
    }
    if let Ok(workload) = decode_workload(data) {
        assert_eq!(decode_workload(&encode_workload(&workload)), Ok(workload));
    }
}

/// Policy files: any bytes are read or reported, every report points into the file, and an object that was read is the
/// same when it is written and read again.
#[cfg(feature = "crd")]
pub fn fuzz_yaml(data: &[u8]) {
    let contents = crate::source::read("fuzz.yaml", data, "default");
    let of_objects = contents.objects.iter().flat_map(crate::validate::analyze);
    let of_set = crate::validate::analyze_set(&contents.objects);
    let lines = data.split(|byte| matches!(byte, b'\n' | b'\r')).count() + 1;
    for diagnostic in contents.diagnostics.iter().cloned().chain(of_objects).chain(of_set) {
        let line = usize::try_from(diagnostic.line).unwrap_or(usize::MAX);
        assert!((1..=lines).contains(&line), "{diagnostic} in a file of {lines} lines");
        assert!(diagnostic.column > 0 && !diagnostic.message.is_empty(), "{diagnostic}");
    }
    for loaded in &contents.objects {
        if let Ok(written) = loaded.object.to_value() {
            let again = crate::source::read("fuzz.yaml", written.to_string().as_bytes(), "default");
            assert_eq!(again.objects.first().map(|again| &again.object), Some(&loaded.object));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    fn replay(target: &str, body: fn(&[u8])) {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../fuzz/corpus")
            .join(target);
        let mut count = 0;
        for entry in std::fs::read_dir(&corpus).unwrap() {
            body(&std::fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "{} is empty", corpus.display());
    }

    #[test]
    fn seeds_of_wire() {
        replay("wire", super::fuzz_wire);
    }

    #[cfg(feature = "crd")]
    #[test]
    fn seeds_of_yaml() {
        replay("yaml", super::fuzz_yaml);
    }
}
