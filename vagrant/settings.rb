# Settings of the virtual hosts, each a variable of the environment: name, default, what is allowed, meaning.
#
# Life: the Vagrantfile calls Settings.read once; what comes back is checked as a whole. Everything wrong is told at once,
# a line per variable. README.md shows this table (tests/unit/test_vagrant.py compares them).
module PycniSettings
  Setting = Struct.new(:name, :default, :allowed, :meaning) do
    # The value in its own type, or an error in words.
    def read(text)
      case allowed
      when Range
        return Integer(text, 10) if text.match?(/\A\d+\z/) && allowed.cover?(Integer(text, 10))
        raise ArgumentError, "not a whole number from #{allowed.min} to #{allowed.max}"
      when Array
        return text if allowed.include?(text)
        raise ArgumentError, "not one of #{allowed.join(', ')}"
      when Regexp
        return text if text.match?(allowed)
        raise ArgumentError, "not #{article}"
      end
    end

    def article
      { "PYCNI_UNDERLAY" => "an IPv4 network of 24 bits, as 192.168.57.0/24",
        "PYCNI_UNDERLAY6" => "an IPv6 network of 64 bits, as fd57::/64",
        "PYCNI_BOX" => "the name of a box, as debian/bookworm64" }.fetch(name)
    end

    # For the table in README.md.
    def allowed_text
      case allowed
      when Range then "#{allowed.min} to #{allowed.max}"
      when Array then allowed.map { |item| "`#{item}`" }.join(", ")
      else article
      end
    end
  end

  BYTE = /(?:25[0-5]|2[0-4]\d|1?\d?\d)/
  TABLE = [
    Setting.new("PYCNI_NODES", "3", 1..20, "nodes; the router comes on top"),
    Setting.new("PYCNI_MEMORY", "1024", 512..65_536, "MiB of each host; 2048 at least with Kubernetes"),
    Setting.new("PYCNI_CPUS", "2", 1..64, "processors of each host"),
    Setting.new("PYCNI_PROVIDER", "libvirt", %w[libvirt virtualbox], "who runs the hosts"),
    Setting.new("PYCNI_BOX", "debian/bookworm64", %r{\A[\w.-]+/[\w.-]+\z}, "their image; Debian 12 is what this is written for"),
    Setting.new("PYCNI_UNDERLAY", "192.168.57.0/24", %r{\A#{BYTE}\.#{BYTE}\.#{BYTE}\.0/24\z}, "their network: router .2, nodes from .11"),
    Setting.new("PYCNI_UNDERLAY6", "fd57::/64", %r{\A[0-9a-f]{1,4}(:[0-9a-f]{1,4}){0,3}::/64\z}, "the same in IPv6, ::2 and from ::11"),
    Setting.new("PYCNI_FAMILY", "dual", %w[ipv4 ipv6 dual], "addresses of pods"),
    Setting.new("PYCNI_BACKEND", "vxlan", %w[vxlan host-gw ipip wireguard udp bgp], "docs/backends.md"),
    Setting.new("PYCNI_ATTACHMENT", "bridge", %w[bridge ptp], "docs/attachments.md"),
    Setting.new("PYCNI_PROXY", "auto", %w[none auto nftables ipvs ebpf], "data plane of Services, docs/proxy.md"),
    Setting.new("PYCNI_POLICY", "nftables", %w[none nftables ebpf], "data plane of NetworkPolicies, docs/policy.md"),
    Setting.new("PYCNI_BGP", "exabgp", %w[none exabgp bird], "who speaks BGP with the router, docs/bgp.md"),
    Setting.new("PYCNI_PODS", "2", 1..50, "pods per node, beside one that policies close"),
    Setting.new("PYCNI_KUBERNETES", "0", %w[0 1], "1: kubeadm makes a cluster, in place of etcd and pods of our own"),
  ].freeze

  class Wrong < StandardError; end

  # The values by name. Raises Wrong with a line for everything that is wrong; empty variables are none.
  def self.read(environment)
    wrong = []
    values = TABLE.to_h do |setting|
      given = environment[setting.name].to_s
      begin
        [setting.name, setting.read(given.empty? ? setting.default : given)]
      rescue ArgumentError => e
        wrong << "#{setting.name}=#{given.inspect}: #{e.message}"
        [setting.name, nil]
      end
    end
    known = TABLE.map(&:name)
    (environment.keys.grep(/\APYCNI_/) - known - OTHERS).sort.each do |name|
      wrong << "#{name}=#{environment[name].inspect}: no such setting"
    end
    wrong += together(values) if wrong.empty?
    raise Wrong, "vagrant: #{wrong.join("\nvagrant: ")}" unless wrong.empty?
    values
  end

  # Variables of ours that others read.
  OTHERS = %w[PYCNI_ON PYCNI_SOURCE PYCNI_SOCKET PYCNI_BENCH_BACKENDS PYCNI_BENCH_SECONDS PYCNI_BENCH_ROUNDS
    PYCNI_BENCH_SUITE PYCNI_BENCH_QUICK].freeze

  # What is right alone and wrong together.
  def self.together(values)
    wrong = []
    if values["PYCNI_BACKEND"] == "ipip" && values["PYCNI_FAMILY"] != "ipv4"
      wrong << "PYCNI_BACKEND=\"ipip\": carries IPv4 only, and PYCNI_FAMILY is #{values['PYCNI_FAMILY'].inspect}"
    end
    if values["PYCNI_BACKEND"] == "bgp" && values["PYCNI_BGP"] == "none"
      wrong << "PYCNI_BACKEND=\"bgp\": needs PYCNI_BGP, which is \"none\""
    end
    if values["PYCNI_KUBERNETES"] == "1" && values["PYCNI_MEMORY"] < 2048
      wrong << "PYCNI_MEMORY=\"#{values['PYCNI_MEMORY']}\": PYCNI_KUBERNETES needs 2048 at least"
    end
    wrong
  end
  private_class_method :together

  # The hosts as provisioning is told: "NAME=IPV4=IPV6" with spaces between, the router first.
  def self.hosts(values)
    v4 = values["PYCNI_UNDERLAY"].delete_suffix("0/24")
    v6 = values["PYCNI_UNDERLAY6"].delete_suffix("/64")
    nodes = (1..values["PYCNI_NODES"]).map { |i| ["node#{i}", "#{v4}#{10 + i}", "#{v6}#{10 + i}"] }
    [["router", "#{v4}2", "#{v6}2"], *nodes]
  end
end

# `ruby settings.rb` prints the table, `ruby settings.rb check` what the environment gives, as lines NAME=VALUE.
if $PROGRAM_NAME == __FILE__
  begin
    if ARGV.first == "check"
      values = PycniSettings.read(ENV.to_h)
      values.each { |name, value| puts "#{name}=#{value}" }
      puts "PYCNI_HOSTS=#{PycniSettings.hosts(values).map { |host| host.join('=') }.join(' ')}"
    else
      puts "| variable | default | allowed | meaning |", "|---|---|---|---|"
      PycniSettings::TABLE.each { |s| puts "| `#{s.name}` | `#{s.default}` | #{s.allowed_text} | #{s.meaning} |" }
    end
  rescue PycniSettings::Wrong => e
    warn e.message
    exit 2
  end
end
