// A chain of point-to-point links in ns-3, fed packets from a file: what scripts/bench simulation compares with.
//
// Usage: tandem_ns3 ARRIVALS DEPARTURES DELAY_PS RATE_BPS...
//
// ARRIVALS holds, for each packet, its time in picoseconds and its bytes without ns-3's 2-byte PPP header, as two
// native 64-bit integers; DEPARTURES receives the picosecond at which each packet has crossed the last link. The links
// have the given rates and one propagation delay. Prints the seconds that the simulation took.

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "ns3/core-module.h"
#include "ns3/network-module.h"
#include "ns3/point-to-point-module.h"

using namespace ns3;

namespace {

struct Arrival
{
    std::int64_t timePs;
    std::int64_t bytes;
};

constexpr std::uint16_t kProtocol = 0x0800;

std::vector<Arrival> g_arrivals;
std::vector<std::int64_t> g_departures;
Ptr<NetDevice> g_first;
std::size_t g_next = 0;

std::vector<Arrival>
ReadArrivals(const char* path)
{
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    if (!file)
    {
        std::perror(path);
        std::exit(2);
    }
    std::vector<Arrival> arrivals(static_cast<std::size_t>(file.tellg()) / sizeof(Arrival));
    file.seekg(0);
    file.read(reinterpret_cast<char*>(arrivals.data()),
              static_cast<std::streamsize>(arrivals.size() * sizeof(Arrival)));
    return arrivals;
}

// One event sends a packet and schedules the next, so that the calendar stays short.
void
SendNext()
{
    g_first->Send(Create<Packet>(static_cast<std::uint32_t>(g_arrivals[g_next].bytes)),
                  g_first->GetBroadcast(),
                  kProtocol);
    ++g_next;
    if (g_next < g_arrivals.size())
    {
        Simulator::Schedule(PicoSeconds(g_arrivals[g_next].timePs) - Simulator::Now(), &SendNext);
    }
}

bool
Forward(Ptr<NetDevice> next, Ptr<NetDevice>, Ptr<const Packet> packet, std::uint16_t, const Address&)
{
    next->Send(packet->Copy(), next->GetBroadcast(), kProtocol);
    return true;
}

bool
Arrive(Ptr<NetDevice>, Ptr<const Packet>, std::uint16_t, const Address&)
{
    g_departures.push_back(Simulator::Now().GetPicoSeconds());
    return true;
}

} // namespace

int
main(int argc, char* argv[])
{
    if (argc < 5)
    {
        std::fprintf(stderr, "usage: %s ARRIVALS DEPARTURES DELAY_PS RATE_BPS...\n", argv[0]);
        return 2;
    }
    Time::SetResolution(Time::PS);
    g_arrivals = ReadArrivals(argv[1]);
    g_departures.reserve(g_arrivals.size());
    NodeContainer nodes;
    nodes.Create(static_cast<std::uint32_t>(argc - 3));
    PointToPointHelper helper;
    helper.SetQueue("ns3::DropTailQueue<Packet>", "MaxSize", StringValue("4000000000p"));
    helper.SetChannelAttribute("Delay", TimeValue(PicoSeconds(std::atoll(argv[3]))));
    Ptr<NetDevice> arriving;
    for (int link = 0; link + 4 < argc; ++link)
    {
        helper.SetDeviceAttribute("DataRate", StringValue(std::string(argv[link + 4]) + "bps"));
        NetDeviceContainer ends = helper.Install(nodes.Get(link), nodes.Get(link + 1));
        if (arriving)
        {
            arriving->SetReceiveCallback(MakeBoundCallback(&Forward, ends.Get(0)));
        }
        else
        {
            g_first = ends.Get(0);
        }
        arriving = ends.Get(1);
    }
    arriving->SetReceiveCallback(MakeCallback(&Arrive));
    Simulator::Schedule(PicoSeconds(g_arrivals.front().timePs), &SendNext);
    const auto began = std::chrono::steady_clock::now();
    Simulator::Run();
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - began;
    Simulator::Destroy();
    std::ofstream out(argv[2], std::ios::binary);
    out.write(reinterpret_cast<const char*>(g_departures.data()),
              static_cast<std::streamsize>(g_departures.size() * sizeof(std::int64_t)));
    std::printf("%.6f\n", spent.count());
    return 0;
}
