//! Which connections are redirected, as Istio's annotations say it: lists of ports and address ranges, `*` for all.
//! Comes out as the arguments of the init container.

use ipnet::IpNet;

/// Which connections of a pod are redirected; every list is checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Capture {
    /// Inbound ports, or `*`.
    pub inbound_ports: String,
    /// Inbound ports that are left alone.
    pub exclude_inbound_ports: String,
    /// Outbound ports whatever the address, or `*`.
    pub outbound_ports: String,
    /// Outbound ports that are left alone.
    pub exclude_outbound_ports: String,
    /// Outbound address ranges, or `*`.
    pub outbound_ranges: String,
    /// Outbound address ranges that are left alone.
    pub exclude_outbound_ranges: String,
    /// Interfaces that are left alone.
    pub exclude_interfaces: String,
}

impl Capture {
    /// The arguments of `mesh-proxy intercept`. What is empty captures or excludes nothing and is only named where
    /// that is not the program's default.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            format!("--inbound-ports={}", self.inbound_ports),
            format!("--outbound-ranges={}", self.outbound_ranges),
        ];
        for (flag, list) in [
            ("exclude-inbound-ports", &self.exclude_inbound_ports),
            ("outbound-ports", &self.outbound_ports),
            ("exclude-outbound-ports", &self.exclude_outbound_ports),
            ("exclude-outbound-ranges", &self.exclude_outbound_ranges),
            ("exclude-interfaces", &self.exclude_interfaces),
        ] {
            if !list.is_empty() {
                arguments.push(format!("--{flag}={list}"));
            }
        }
        arguments
    }
}

/// Ports, or `*`; in one form, without spaces.
pub fn ports_or_all(text: &str) -> Result<String, String> {
    if text.trim() == "*" {
        return Ok("*".to_owned());
    }
    ports(text)
}

/// Ports with commas between them.
pub fn ports(text: &str) -> Result<String, String> {
    list(text, |item| match item.parse::<u16>() {
        Ok(port) if port > 0 => Ok(()),
        _ => Err(format!(
            "{item:?} is no port: expected numbers from 1 to 65535 with commas between them"
        )),
    })
}

/// Address ranges, or `*`.
pub fn ranges_or_all(text: &str) -> Result<String, String> {
    if text.trim() == "*" {
        return Ok("*".to_owned());
    }
    ranges(text)
}

/// Address ranges with commas between them.
pub fn ranges(text: &str) -> Result<String, String> {
    list(text, |item| match item.parse::<IpNet>() {
        Ok(_) => Ok(()),
        Err(_) => Err(format!(
            "{item:?} is no address range: expected such as 10.0.0.0/8, with commas between them"
        )),
    })
}

/// Names of interfaces with commas between them.
pub fn interfaces(text: &str) -> Result<String, String> {
    list(text, |item| {
        let allowed = |b: u8| b.is_ascii_graphic() && !matches!(b, b'/' | b'"' | b'\'');
        match item.len() <= 15 && item.bytes().all(allowed) {
            true => Ok(()),
            false => Err(format!("{item:?} is no name of a network interface")),
        }
    })
}

fn list(text: &str, check: impl Fn(&str) -> Result<(), String>) -> Result<String, String> {
    let items: Vec<&str> = text.split(',').map(str::trim).collect();
    if items == [""] {
        return Ok(String::new());
    }
    for item in &items {
        check(item)?;
    }
    Ok(items.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        assert_eq!(ports_or_all(" * ").unwrap(), "*");
        assert_eq!(ports_or_all("").unwrap(), "");
        assert_eq!(ports("80, 8080").unwrap(), "80,8080");
        assert_eq!(ranges_or_all("10.0.0.0/8, fd00::/8").unwrap(), "10.0.0.0/8,fd00::/8");
        assert_eq!(interfaces("eth1").unwrap(), "eth1");
        for bad in ["*", "80,", "0", "65536", "80 81", "-1", "http"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
        for bad in ["10.0.0.1", "10.0.0.0/33", "*,10.0.0.0/8", "10.0.0.0/8,"] {
            assert!(ranges_or_all(bad).is_err(), "{bad}");
        }
        assert!(interfaces("a b").is_err());
        assert!(interfaces("more-than-fifteen").is_err());
    }
}
