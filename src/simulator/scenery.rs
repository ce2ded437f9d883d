//! The texts of alerts: hosts, metrics, subjects and descriptions, made up from a number.
//!
//! The same number always gives the same scene, so no text needs to be stored. Names are invented,
//! and addresses come from the ranges that are reserved for documentation. The texts have quotes,
//! backslashes, newlines and letters from all over the world on purpose, because real alerts do.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::alert::{EventType, Priority, State};

/// A kind of trouble. In its texts, `{h}` stands for the host, `{c}` for the component, `{p}` for
/// a percentage, `{r}` for the rest to 100 %, `{n}` for a number, `{x}` for a limit.
struct Trouble {
    app: &'static str,
    metric: &'static str,
    area: &'static str,
    alert_type: &'static str,
    resource_types: &'static [&'static str],
    components: &'static [&'static str],
    subject: &'static str,
    description: &'static str,
}

const SERVERS: &[&str] = &["Linux", "Windows"];
const NETWORK: &[&str] = &["Switch", "Router", "Firewall"];

const TROUBLES: &[Trouble] = &[
    Trouble {
        app: "OPSRAMP",
        metric: "system.disk.usage.utilization",
        area: "Storage",
        alert_type: "Monitoring",
        resource_types: &["Linux"],
        components: &["/", "/var", "/var/log", "/srv/data", "/home"],
        subject: "Disk {c} usage on {h} is {p}%; threshold {x}%",
        description: "Filesystem {c} on {h} crossed its threshold of {x}%.\nUsed {p}%\nFree {r}%\nInodes used {n}",
    },
    Trouble {
        app: "OPSRAMP",
        metric: "Disk",
        area: "Storage",
        alert_type: "Monitoring",
        resource_types: &["Windows"],
        components: &["C:\\", "D:\\", "E:\\SQLData"],
        subject: "Disk {c} is critical. Used {p}%; Free {r}%; Threshold is {x}%.",
        description: "Disk {c} is critical. (Crossed {x}% usage). Total-102642 MB; Used {p}%; Free {r}%;",
    },
    Trouble {
        app: "OPSRAMP",
        metric: "system.cpu.utilization",
        area: "Performance",
        alert_type: "Monitoring",
        resource_types: SERVERS,
        components: &["", "cpu0", "_Total"],
        subject: "CPU utilization on {h} is {p}% for 15 minutes",
        description: "Average CPU utilization is {p}%, threshold {x}%. Load {n}.",
    },
    Trouble {
        app: "OPSRAMP",
        metric: "system.memory.utilization",
        area: "Performance",
        alert_type: "Monitoring",
        resource_types: SERVERS,
        components: &["", "swap"],
        subject: "Memory of {h}: {p}% used",
        description: "Memory utilization {p}% is above {x}%; {n} MB available.",
    },
    Trouble {
        app: "OPSRAMP",
        metric: "Windows Event Log",
        area: "Event Log",
        alert_type: "Monitoring",
        resource_types: &["Windows"],
        components: &["Application", "System", "Security"],
        subject: "Event Source : McLogEvent / Id : {n}",
        description: "Source : McLogEvent Event ID : {n} Event Description : The scan of \"C:\\setup\\build\\fastutil.jar\" has taken too long.\r\nEvent Log Name : {c}",
    },
    Trouble {
        app: "OPSRAMP",
        metric: "PING",
        area: "Availability",
        alert_type: "Monitoring",
        resource_types: NETWORK,
        components: &[""],
        subject: "{h} is not responding to ping",
        description: "Packet loss {p}%, round trip {n} ms.",
    },
    Trouble {
        app: "OPSRAMP",
        metric: "network.interface.utilization",
        area: "Network",
        alert_type: "Monitoring",
        resource_types: NETWORK,
        components: &["GigabitEthernet0/1", "xe-0/0/17", "Port-channel 3", "eth0"],
        subject: "Interface {c} of {h} is {p}% utilized",
        description: "Inbound utilization of {c} is {p}%; {n} errors in the last 5 minutes.",
    },
    Trouble {
        app: "OPSRAMP",
        metric: "agent.status",
        area: "Agent",
        alert_type: "Agent",
        resource_types: SERVERS,
        components: &["agent"],
        subject: "Agent on {h} is offline",
        description: "No heartbeat from the agent on {h} for {n} seconds.",
    },
    Trouble {
        app: "OPSRAMP",
        metric: "config.change",
        area: "Configuration",
        alert_type: "Change Detection",
        resource_types: NETWORK,
        components: &["running-config"],
        subject: "Configuration of {h} changed",
        description: "{n} lines of {c} differ from the backup.",
    },
    Trouble {
        app: "OPSRAMP",
        metric: "system.disk.forecast",
        area: "Storage",
        alert_type: "Forecast",
        resource_types: SERVERS,
        components: &["/srv/data", "D:\\"],
        subject: "{c} on {h} will be full in {n} hours",
        description: "At the present rate {c} reaches 100% in {n} hours.",
    },
    Trouble {
        app: "Nagios",
        metric: "check_http",
        area: "Web",
        alert_type: "MONITORING",
        resource_types: &["Linux", "Website"],
        components: &["HTTP", "HTTPS"],
        subject: "HTTP CRITICAL: HTTP/1.1 503 Service Unavailable - {n} bytes in 0.{x} second response time",
        description: "check_http -H {h} -p 443 -S: HTTP/1.1 503 Service Unavailable",
    },
    Trouble {
        app: "Nagios",
        metric: "check_load",
        area: "",
        alert_type: "MONITORING",
        resource_types: &["Linux"],
        components: &["load"],
        subject: "WARNING - load average: {n}.21, {x}.90, 7.02",
        description: "",
    },
    Trouble {
        app: "Email",
        metric: "Email",
        area: "Backup",
        alert_type: "Monitoring",
        resource_types: &["Linux"],
        components: &["backup"],
        subject: "RE: [backup] job \"nightly full\" on {h} failed — error {n}",
        description: "Dear all,\n\nthe job \"nightly full\" failed with error {n}.\n\n-- \nThe backup team\tBüro Zürich",
    },
    Trouble {
        app: "SolarWinds",
        metric: "Node Status",
        area: "Availability",
        alert_type: "Monitoring",
        resource_types: NETWORK,
        components: &["node"],
        subject: "Node {h} is Down.",
        description: "Node {h} went down {n} seconds ago.",
    },
    Trouble {
        app: "VMware",
        metric: "vmware.datastore.latency",
        area: "Virtualization",
        alert_type: "Monitoring",
        resource_types: &["VMware ESXi", "Datastore"],
        components: &["datastore1", "vsan-02"],
        subject: "Datastore {c}: device latency {n} ms on {h}",
        description: "Latency of {c} was above {x} ms for 10 minutes.",
    },
    Trouble {
        app: "AWS CloudWatch",
        metric: "StatusCheckFailed",
        area: "Cloud",
        alert_type: "Monitoring",
        resource_types: &["EC2"],
        components: &["instance"],
        subject: "ALARM: \"StatusCheckFailed-{h}\" in EU (Frankfurt)",
        description: "Threshold Crossed: 1 datapoint [1.0] was greater than or equal to the threshold (1.0).",
    },
    Trouble {
        app: "Azure Monitor",
        metric: "Percentage CPU",
        area: "Cloud",
        alert_type: "Monitoring",
        resource_types: &["Virtual Machine"],
        components: &[""],
        subject: "Fired:Sev2 Azure Monitor Alert CPU > {x}% on {h}",
        description: "Percentage CPU was {p}.",
    },
    Trouble {
        app: "Prometheus",
        metric: "KubePodCrashLooping",
        area: "Kubernetes",
        alert_type: "Monitoring",
        resource_types: &["Kubernetes"],
        components: &["shop/cart-7d9f", "shop/payment-5b66", "kube-system/coredns"],
        subject: "Pod {c} is restarting {x} times / 10 minutes",
        description: "Pod {c} on {h} is in state CrashLoopBackOff.",
    },
    Trouble {
        app: "OPSRAMP",
        metric: "mssql.deadlocks",
        area: "Database",
        alert_type: "Monitoring",
        resource_types: &["Windows"],
        components: &["SQLPROD\\FINANCE", "SQLPROD\\HR"],
        subject: "{n} deadlocks on {c}",
        description: "Instance {c} reported {n} deadlocks in 5 minutes.",
    },
    Trouble {
        app: "OPSRAMP",
        metric: "integration.failure",
        area: "Integration",
        alert_type: "Integration Failure",
        resource_types: &["OpsRamp Gateway"],
        components: &["東京-gw", "são-paulo-gw"],
        subject: "Integration \"{c}\" fails ⚠ since {n} s",
        description: "Zertifikat für {c} abgelaufen; see <https://docs.example.com/?a=1&b=2>",
    },
];

const ROLES: &[&str] = &[
    "web", "app", "db", "cache", "mail", "file", "auth", "queue", "edge", "core", "vpn", "build",
];
const SITES: &[&str] = &[
    "ams", "fra", "lon", "nyc", "sjc", "sin", "syd", "blr", "gru", "nrt",
];
/// The number of hosts of each role at each site.
const HOSTS: u64 = 40;

/// What one alert is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scene {
    trouble: &'static Trouble,
    /// Identifies the host: equal numbers are the same machine.
    host: u64,
    /// The source of the numbers in the texts.
    noise: u64,
}

/// The machine that an alert is about.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) name: String,
    pub(super) address: String,
    pub(super) id: String,
}

/// Returns a well mixed number for each input (the finalizer of splitmix64).
pub(super) const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// Writes a number in the shape of a UUID (version 4).
pub(super) fn uuid(value: u64) -> String {
    let (high, low) = (mix(value), mix(value ^ 0xA5A5_A5A5));
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xFFFF,
        high & 0xFFF,
        0x8000 | ((low >> 48) & 0x3FFF),
        low & 0xFFFF_FFFF_FFFF,
    )
}

fn pick(from: &'static [&'static str], by: u64) -> &'static str {
    from[(by % from.len() as u64) as usize]
}

/// Returns the state that an alert opens with.
pub(super) fn first_state(seed: u64) -> State {
    match mix(seed ^ 1) % 100 {
        0..40 => State::Critical,
        40..80 => State::Warning,
        80..95 => State::Info,
        _ => State::Ok,
    }
}

/// Returns the priority that an alert opens with.
pub(super) fn first_priority(seed: u64) -> Priority {
    match mix(seed ^ 2) % 100 {
        0..50 => Priority::NotSet,
        50..54 => Priority::P0,
        54..64 => Priority::P1,
        64..78 => Priority::P2,
        78..90 => Priority::P3,
        90..96 => Priority::P4,
        _ => Priority::P5,
    }
}

/// Returns the kind that an alert opens with.
pub(super) fn first_event_type(seed: u64) -> EventType {
    match mix(seed ^ 3) % 100 {
        0..94 => EventType::Alert,
        94..98 => EventType::Inference,
        _ => EventType::Rca,
    }
}

// === impl Scene ===

impl Scene {
    /// Returns the scene of a number.
    pub(super) fn of(seed: u64) -> Self {
        let noise = mix(seed);
        Self {
            trouble: &TROUBLES[(noise % TROUBLES.len() as u64) as usize],
            host: (noise >> 20) % (ROLES.len() as u64 * SITES.len() as u64 * HOSTS),
            noise: mix(noise),
        }
    }

    pub(super) const fn app(&self) -> &'static str {
        self.trouble.app
    }

    pub(super) const fn metric(&self) -> &'static str {
        self.trouble.metric
    }

    pub(super) const fn problem_area(&self) -> &'static str {
        self.trouble.area
    }

    pub(super) const fn alert_type(&self) -> &'static str {
        self.trouble.alert_type
    }

    pub(super) fn resource_type(&self) -> &'static str {
        pick(self.trouble.resource_types, self.host)
    }

    pub(super) fn component(&self) -> &'static str {
        pick(self.trouble.components, self.noise >> 8)
    }

    /// Whether OpsRamp manages the resource, rather than only knowing of it.
    pub(super) const fn managed(&self) -> bool {
        !self.host.is_multiple_of(3)
    }

    pub(super) fn resource_id(&self) -> String {
        uuid(self.host)
    }

    pub(super) fn host(&self) -> Host {
        let role = pick(ROLES, self.host);
        let site = pick(SITES, self.host / ROLES.len() as u64);
        let number = self.host / (ROLES.len() as u64 * SITES.len() as u64) + 1;
        let network = pick(&["192.0.2", "198.51.100", "203.0.113"], self.host);
        Host {
            name: format!("{role}-{site}-{number:02}"),
            address: format!("{network}.{}", self.host % 254 + 1),
            id: self.resource_id(),
        }
    }

    pub(super) fn subject(&self, host: &str) -> String {
        self.fill(self.trouble.subject, host)
    }

    pub(super) fn description(&self, host: &str) -> String {
        self.fill(self.trouble.description, host)
    }

    pub(super) fn inference_subject(&self) -> Cow<'static, str> {
        let count = self.noise % 30 + 2;
        let role = pick(ROLES, self.host);
        format!("Inference: {count} alerts on the {role} service").into()
    }

    fn fill(&self, template: &str, host: &str) -> String {
        let mut text = String::with_capacity(template.len() + 32);
        let mut rest = template;
        // 90.00 to 99.99, so that the rest to 100 always has the same number of digits.
        let percent = 9000 + self.noise % 1000;
        while let Some((before, after)) = rest.split_once('{') {
            text.push_str(before);
            let (name, after) = after.split_once('}').unwrap_or((after, ""));
            let written = match name {
                "h" => write!(text, "{host}"),
                "c" => write!(text, "{}", self.component()),
                "p" => write!(text, "{}.{:02}", percent / 100, percent % 100),
                "r" => {
                    let left = 10_000 - percent;
                    write!(text, "{}.{:02}", left / 100, left % 100)
                }
                "n" => write!(text, "{}", (self.noise >> 16) % 900 + 2),
                _ => write!(text, "{}", 70 + 5 * (self.noise % 5)),
            };
            debug_assert!(written.is_ok(), "a String takes everything");
            rest = after;
        }
        text.push_str(rest);
        text
    }
}

impl std::fmt::Debug for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.app, self.metric)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_same_number_gives_the_same_scene() {
        let (one, other) = (Scene::of(77), Scene::of(77));
        assert_eq!(one.subject("h"), other.subject("h"));
        assert_eq!(one.host().name, other.host().name);
    }

    #[test]
    fn no_placeholder_survives_and_every_trouble_occurs() {
        let mut metrics = HashSet::new();
        for seed in 0..2000 {
            let scene = Scene::of(seed);
            let host = scene.host();
            let text = scene.subject(&host.name) + &scene.description(&host.name);
            assert!(!text.contains(['{', '}']), "{text}");
            metrics.insert((scene.app(), scene.metric()));
        }
        assert_eq!(metrics.len(), TROUBLES.len());
    }

    #[test]
    fn a_uuid_has_its_shape() {
        assert_eq!(uuid(1).len(), 36);
        assert_ne!(uuid(1), uuid(2));
        assert_eq!(uuid(9).as_bytes()[14], b'4');
    }
}
